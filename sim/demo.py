# SPDX-License-Identifier: Apache-2.0
"""What ``make run`` shows: three real layers, then what prefetch and multicast do to one."""

import sys
import time

from rich.console import Console

from emu.errors import UserError
from hdl.prefetch.registry import POLICIES
from sim.errors import RunError
from sim.execute import compare, run
from sim.tables import compare_table, summary_table

LAYERS = ("resnet50.res4_3x3", "bert_base.ffn1", "gpt2.decode_ffn")
POLICY_LAYER = "gpt2.decode_ffn"
MULTICAST_LAYER = "resnet50.res4_3x3"


def main() -> int:
    """Run the demonstration; returns the exit code."""
    console = Console()
    begin = time.perf_counter()
    show = Console(stderr=True)
    with show.status("starting") as status:
        rows = []
        for name in LAYERS:
            def progress(text: str, name: str = name) -> None:
                status.update(f"{name}: {text}")

            result = run(name, progress=progress)
            rows.append((name, result))
        console.print(summary_table(
            "three layers on the base chip, prefetch.policy next_layer; stalls in tile cycles", rows
        ))
        policies = compare(POLICY_LAYER, {"prefetch.policy": list(POLICIES)},
                           progress=status.update)
        console.print(compare_table(policies))
        multicast = compare(
            MULTICAST_LAYER, {"mesh.multicast": ("false", "true")}, progress=status.update
        )
        console.print(compare_table(multicast))
    before, after = policies[0], min(policies, key=lambda r: r["cycles"])
    console.print(
        f"prefetch ({after['policy']['name']}) on {POLICY_LAYER}: block stalls "
        f"{before['stalls']['block']:,} -> {after['stalls']['block']:,} tile cycles, HBM read "
        f"{before['bytes']['hbm_read']:,} -> {after['bytes']['hbm_read']:,} bytes"
    )
    unicast, shared = multicast
    console.print(
        f"multicast on {MULTICAST_LAYER}: HBM read {unicast['bytes']['hbm_read']:,} -> "
        f"{shared['bytes']['hbm_read']:,} bytes, cycles {unicast['cycles']:,} -> "
        f"{shared['cycles']:,}"
    )
    console.print(f"{time.perf_counter() - begin:.1f} s in all", highlight=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        print("headrace: interrupted", file=sys.stderr)
        sys.exit(130)
