# SPDX-License-Identifier: Apache-2.0
"""``make sim``: list the component benches, or run one in one simulator."""

import sys
from collections.abc import Sequence
from pathlib import Path

from emu.errors import UserError
from sim import runner
from sim.arguments import OneLineParser
from sim.interrupt import stopping
from sim.waves import Waves


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; returns the exit code."""
    parser = OneLineParser(prog="python -m sim.bench_cli", description=__doc__)
    parser.add_argument("bench", nargs="?", default="")
    parser.add_argument("--sim", default="verilator", choices=("verilator", "icarus"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variant", default="", help="this one only (default: all)")
    parser.add_argument("--waves", default="", help="record one variant, by default the first")
    arguments = parser.parse_args(argv)
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
    variants = [arguments.variant] if arguments.variant else []
    if waves and not variants:
        variants = runner.variant_names(arguments.bench)[:1]
    with stopping():
        report = runner.run_bench(arguments.bench, arguments.sim, workdir=workdir,
                                  seed=arguments.seed, waves=waves, variants=variants)
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
