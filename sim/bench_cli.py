# SPDX-License-Identifier: Apache-2.0
"""``make sim``: list the component benches, or run one in one simulator."""

import argparse
import sys
from pathlib import Path

from emu.errors import UserError
from sim import runner
from sim.waves import Waves


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("bench", nargs="?", default="")
    parser.add_argument("--sim", default="verilator", choices=("verilator", "icarus"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--waves", default="")
    arguments = parser.parse_args()
    names = runner.bench_names()
    if not arguments.bench:
        print("\n".join(names))
        return 0
    if arguments.bench not in names:
        raise UserError(f"no bench {arguments.bench!r}: `make sim` lists them")
    waves = Waves(path=arguments.waves) if arguments.waves else None
    if waves:
        waves.check(arguments.sim)
    workdir = Path("build", "sim", arguments.bench, arguments.sim)
    report = runner.run_bench(arguments.bench, arguments.sim, workdir=workdir,
                              seed=arguments.seed, waves=waves)
    for variant, (tests, failed) in report.items():
        print(f"{arguments.bench} {variant}: {tests - failed} passed, {failed} failed "
              f"({arguments.sim}, seed {arguments.seed}, log {workdir / variant / 'run.log'})")
    return int(any(failed or not tests for tests, failed in report.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
