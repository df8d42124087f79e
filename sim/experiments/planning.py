# SPDX-License-Identifier: Apache-2.0
"""The study of memory planning: offsets by the compiler against an allocator as tensors come.

Everything is played on the RTL allocation unit, `hdl.allocator`. A word is what the sixteen tiles
of `base` hold at one address, so that a tensor spread over all of them has one area.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import emu
import hdl
from emu.allocator import Allocator, Command, Mode, Op
from emu.compiler import compile_network
from emu.config import load_config
from emu.lifetimes import Trace, chain, inference, requests, training_step
from emu.network.layers import Network
from emu.network.transformers import encoder
from emu.network.workloads import load_network
from emu.planner import Item, lower_bound, place
from emu.spills import plan_within, spill_bound
from sim import runner
from sim.experiments.framework import LEVELS, Experiment, Progress, coefficients, kept
from sim.planning import player

WORD = 256
WORDS, AREAS = 1 << 20, 512
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25)
"""Sizes of the memory, of the most that lives at once."""
QUICK_SHARES = (0.5, 1.0)
BASELINE, ROOM = "best_fit", "all the room"
ONLINE = {"first_fit": Mode.FIRST_FIT, "best_fit": Mode.BEST_FIT,
          "power_of_two": Mode.POWER_OF_TWO}
PLANNED = ("none", "greedy_by_size", "exact")
SLOTS, HINDSIGHT = "slots", "hindsight"
"""A static plan for lengths that are not known: a place of the largest size for each request. And
what no compiler can do, as a measure: greedy by size when all requests are over."""
SEEDS = (1, 2, 3)

Offsets = Sequence[int | None]


@dataclass(frozen=True)
class Job:
    """A strategy on a trace in a memory of ``capacity`` words; ``offsets`` if it is static."""

    strategy: str
    capacity: int
    offsets: Offsets | None = None
    proven: bool = False


def _bert():
    return encoder("bert_base.block", 1, layers=1, width=768, heads=12, tokens=128)


def _placed(network: Network, name: str) -> Trace:
    program = compile_network(network, load_config("base"), check=False)
    return inference(network, program.memories["activations"], name)


def _traces(quick: bool) -> dict[str, Callable[[], Trace]]:
    def trained(name: str, network: Callable, title: str) -> dict[str, Callable[[], Trace]]:
        step = f"{title}, training step"
        return {title: lambda: _placed(network(), title),
                step: lambda: training_step(network(), step)}

    def streams(seeds: Sequence[int], count: int) -> dict[str, Callable[[], Trace]]:
        names = {f"requests, seed {seed}": seed for seed in seeds}
        return {name: partial(requests, seed, name, count) for name, seed in names.items()}

    equal = {"chain of equal tensors": partial(chain, 24, 96 * 1024, "chain of equal tensors")}
    bert = trained("bert", _bert, "bert_base block")
    if quick:
        return {**bert, **streams(SEEDS[:1], 100), **equal}
    return {
        **trained("resnet50", partial(load_network, "resnet50"), "resnet50"),
        **trained("mobilenetv2", partial(load_network, "mobilenetv2"), "mobilenetv2"),
        **bert, **streams(SEEDS, 400), **equal,
    }


def _jobs(trace: Trace, items: Sequence[Item], capacity: int) -> Iterator[Job]:
    def planned(strategy: str, label: str = "") -> Job:
        plan = plan_within(items, trace.reads, capacity, strategy)
        return Job(label or strategy, capacity, plan.offsets, plan.proven)

    for strategy in ONLINE:
        yield Job(strategy, capacity)
    if not trace.slots:
        yield from (planned(strategy) for strategy in PLANNED)
        return
    room = -(-trace.most // WORD)
    numbers = _numbers(items)
    yield Job(SLOTS, capacity, tuple(
        at if (at := numbers[k] * room) + room <= capacity else None for k in range(len(items))))
    yield planned("greedy_by_size", HINDSIGHT)


def _numbers(items: Sequence[Item]) -> list[int]:
    """Of each item, in order of birth, the least number that none alive has."""
    ends: dict[int, int] = {}
    numbers = []
    for item in items:
        number = next(n for n in range(len(ends) + 1) if ends.get(n, -1) < item.first)
        ends[number] = item.last
        numbers.append(number)
    return numbers


def _events(items: Sequence[Item]) -> Iterator[tuple[Op, int]]:
    """(FREE or ALLOCATE, item): in a step what died before it goes first."""
    events = [(item.last + 1, 0, k) for k, item in enumerate(items)]
    events += [(item.first, 1, k) for k, item in enumerate(items)]
    for _, is_birth, k in sorted(events):
        yield (Op.ALLOCATE if is_birth else Op.FREE), k


def _commands(items: Sequence[Item], job: Job) -> tuple[list[Command], list[int | None]]:
    """(commands, the item that each allocates)."""
    commands = [Command(Op.BEGIN, words=job.capacity, mode=ONLINE.get(job.strategy, Mode.STATIC))]
    allocated: list[int | None] = [None]
    numbers = list(range(len(items))) if len(items) <= AREAS else _numbers(items)
    plans: dict[int, int | None] = {}

    def plan(k: int) -> None:
        if job.offsets is not None and plans.get(numbers[k], -1) != job.offsets[k]:
            at = plans[numbers[k]] = job.offsets[k]
            commands.append(Command(Op.PLAN, numbers[k], offset=at or 0, spilled=at is None))
            allocated.append(None)

    if len(items) <= AREAS:  # the whole table beforehand
        for k in range(len(items)):
            plan(k)
    for op, k in _events(items):
        if op == Op.ALLOCATE:
            plan(k)
        commands.append(Command(op, numbers[k], items[k].size if op == Op.ALLOCATE else 0))
        allocated.append(k if op == Op.ALLOCATE else None)
    return commands, allocated


def _verify(items: Sequence[Item], job: Job, steps, commands, allocated) -> tuple[int, Offsets]:
    """(mismatches, where the hardware put each item).

    Every answer, its cycles and both registers against the model; where items lie against the plan
    or, with all the room, the planner; and that no two that live at once overlap.
    """
    model, wrong, found = Allocator(WORDS, AREAS), 0, dict[int, int | None]()
    spilled = steps[0].spilled_words
    for command, step, k in zip(commands, steps, allocated, strict=True):
        want = model.execute(command)
        wrong += step.answer != want or step.answer.refused
        wrong += step.high_water != model.counters.high_water
        wrong += step.spilled_words - spilled != model.counters.spilled_words
        if k is not None:
            found[k] = None if step.answer.spilled else step.answer.offset
    offsets = [found[k] for k in range(len(items))]
    wanted = job.offsets
    if wanted is None and job.capacity == WORDS:
        wanted = place(items, job.strategy).offsets
    if wanted is not None:
        wrong += sum(a != b for a, b in zip(offsets, wanted, strict=True))
    lying = sorted((at, k) for k, at in enumerate(offsets) if at is not None)
    for index, (at, k) in enumerate(lying):
        wrong += at + items[k].size > job.capacity
        for other, j in lying[index + 1:]:
            if other >= at + items[k].size:
                break
            wrong += items[k].meets(items[j])
    return wrong, offsets


def _row(trace: Trace, items: Sequence[Item], job: Job, size: str, steps) -> dict[str, Any]:
    commands, allocated = _commands(items, job)
    wrong, offsets = _verify(items, job, steps, commands, allocated)
    moved = dict.fromkeys(("scratchpad_write", "scratchpad_read", "hbm_write", "hbm_read"), 0)
    for item, reads, at in zip(items, trace.reads, offsets, strict=True):
        where = "hbm" if at is None else "scratchpad"
        moved[f"{where}_write"] += WORD * item.size
        moved[f"{where}_read"] += WORD * item.size * reads
    spilled = WORD * (steps[-1].spilled_words - steps[0].spilled_words)
    wrong += spilled != moved["hbm_write"]
    worked = [step.answer.cycles for step, command in zip(steps, commands, strict=True)
              if command.op in (Op.ALLOCATE, Op.FREE)]
    table = coefficients()
    return {
        "case": job.strategy, "group": f"{trace.name}, {size}",
        "is_baseline": job.strategy == BASELINE,
        "machine": {"unit": {"words": WORDS, "areas": AREAS, "word_bytes": WORD},
                    "memory_bytes": WORD * job.capacity, "memory": size},
        "workload": trace.name,
        "footprint_bytes": {
            "high_water": WORD * steps[-1].high_water, "lower_bound": WORD * lower_bound(items),
            "spilled": spilled,
        },
        "traffic_bytes": moved,
        "spill_bound_bytes": WORD * spill_bound(items, trace.reads, job.capacity),
        "cycles": sum(step.answer.cycles for step in steps),
        "cycles_of_a_command": {"mean": round(sum(worked) / len(worked), 2), "most": max(worked)},
        "stall_cycles": {},
        # Of the spills; of the high water where nothing spills for want of room.
        "proven_least": steps[-1].high_water == lower_bound(items) if size == ROOM else job.proven,
        "energy_pj": {level: round(
            (moved["scratchpad_write"] + moved["scratchpad_read"]) / 16
            * table["scratchpad_word"][level]
            + 8 * (moved["hbm_write"] + moved["hbm_read"]) * table["hbm_bit"][level])
            for level in LEVELS},
        "verified": {"outputs": len(steps), "mismatches": wrong},
    }


def _measure(make: Callable[[], Trace], quick: bool) -> list[dict[str, Any]]:
    """All strategies in all sizes of memory, played in one simulation.

    Icarus plays a command in three times Verilator's time, but needs no compiler first.
    """
    trace, shares = make(), QUICK_SHARES if quick else SHARES
    items = trace.in_words(WORD)
    bound = lower_bound(items)
    sizes = {ROOM: WORDS, **{f"{share:.2f} of the bound": round(share * bound)
                                       for share in shares}}
    jobs = [(job, size) for size, words in sizes.items() for job in _jobs(trace, items, words)]
    lists = [_commands(items, job)[0] for job, _ in jobs]
    steps = player.play(
        [c for commands in lists for c in commands], words=WORDS, areas=AREAS,
        simulator="icarus" if quick and runner.available("icarus") else "verilator")
    rows = []
    for (job, size), commands in zip(jobs, lists, strict=True):
        rows.append(_row(trace, items, job, size, steps[:len(commands)]))
        steps = steps[len(commands):]
    return rows


def _sources() -> list[Path]:
    """What the rows depend on, but for the compiler, which only chooses alignments here."""
    parts = [Path(emu.__path__[0]) / f"{name}.py"
             for name in ("allocator", "lifetimes", "planner", "spills")]
    here, played = Path(__file__), Path(player.__file__)
    for folder in (Path(emu.__path__[0]) / "network", Path(hdl.__path__[0]) / "allocator",
                   played.parent):
        parts += sorted(folder.glob("*.py"))
    return [*parts, here, here.with_name("energy.toml")]


def _rows(quick: bool, progress: Progress) -> list[dict[str, Any]]:
    rows = []
    for name, trace in _traces(quick).items():
        progress(f"planning, {name}")
        rows += kept(f"planning {name} {quick}", _sources(), partial(_measure, trace, quick))
    return rows


def _spill(row: Mapping[str, Any]) -> int:
    return row["traffic_bytes"]["hbm_write"] + row["traffic_bytes"]["hbm_read"]


def _losses(case: str, sizes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Where ``case`` is worse than best fit."""
    high = {name: sizes[ROOM][name]["footprint_bytes"]["high_water"] for name in (case, BASELINE)}
    found = []
    if high[case] > high[BASELINE]:
        found.append(f"needs {high[case] / high[BASELINE]:.3f} of best fit's high water")
    worse = {size.split()[0]: (_spill(rows[case]), _spill(rows[BASELINE]))
             for size, rows in sizes.items() if _spill(rows[case]) > _spill(rows[BASELINE])}
    if worse:
        ours, theirs = max(worse.values(), key=lambda pair: pair[0] - pair[1])
        found.append(f"spills more than best fit in {', '.join(worse)} of the bound ({ours:,} "
                     f"against {theirs:,} bytes)")
    return found


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    traces: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        sizes = traces.setdefault(row["workload"], {})
        sizes.setdefault(row["machine"]["memory"], {})[row["case"]] = row
    for trace, sizes in traces.items():
        cases = sizes[ROOM]
        high = {case: row["footprint_bytes"]["high_water"] for case, row in cases.items()}
        bound = cases[BASELINE]["footprint_bytes"]["lower_bound"]
        planned = [case for case in ("greedy_by_size", "exact", SLOTS) if case in cases]
        found.append(
            f"{trace}: best fit needs {high[BASELINE] / bound:.3f} of the bound, "
            + ", ".join(f"{case} {high[case] / high[BASELINE]:.3f} of that" for case in planned))
        found += [f"{trace}: {case} loses: {'; '.join(losses)}"
                  for case in planned if (losses := _losses(case, sizes))]
        work = [cases[case]["cycles_of_a_command"] for case in ONLINE]
        means = sorted(each["mean"] for each in work)
        found.append(f"{trace}: a planned command takes 1 cycle, an online one {means[0]} to "
                     f"{means[-1]} on average, {max(each['most'] for each in work)} at most")
    checked = sum(row["verified"]["outputs"] for row in rows)
    return [*found, f"{checked:,} answers of the unit checked"]


PLANNING = Experiment(
    name="planning",
    idea="offsets planned from lifetimes before anything runs, against areas from a free list as "
    "tensors come",
    baseline="best fit with coalescing, in hardware",
    cases=lambda quick: (),
    measure=_rows,
    null_case="a chain of equal tensors: any gap fits any tensor",
    losing_case="requests of lengths that are not known: a plan has places of the largest size; "
    "and greedy by size in training, in too small a memory: it keeps what is large, not what is "
    "read often",
    findings=_findings,
)
