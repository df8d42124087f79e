# SPDX-License-Identifier: Apache-2.0
"""The command line: ``headrace COMMAND``. Each command is also a Python function.

Exit codes: 0 done, 1 the machine failed (mismatch, broken invariant, no end), 2 bad input,
130 interrupted.
"""

import argparse
import json
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from rich.console import Console

from emu.config import load_config
from emu.errors import UserError
from sim.arguments import ERROR_EXIT, build_parser
from sim.errors import RunError
from sim.interrupt import stopping

FAILURE_EXIT, INTERRUPT_EXIT = 1, 130


def _load(path: str) -> None:
    """Run the Python file ``path`` as a module, which registers what it has to offer."""
    if not Path(path).is_file():
        raise UserError(f"--load {path}: no such file")
    name = f"headrace_load_{Path(path).stem}"
    sys.modules[name] = module = ModuleType(name)
    module.__file__ = path
    try:
        SourceFileLoader(name, path).exec_module(module)
    except UserError as error:
        raise UserError(f"--load {path}: {error}") from None
    except Exception as error:  # anything that its author may have done
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == path]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        text = " ".join(str(error).split())
        raise UserError(
            f"--load {path}: line {lines[-1] if lines else '?'}: {type(error).__name__}: {text}"
        ) from None


def _waves(arguments: argparse.Namespace):
    from sim.chip_bench import PERIOD_NS, RESET_CYCLES
    from sim.waves import FOREVER, Waves

    if not arguments.waves:
        if arguments.wave_tile or arguments.wave_cycles:
            raise UserError("--wave-tile and --wave-cycles need --waves FILE")
        return None
    scope, start, end = "", 0, FOREVER
    if arguments.wave_tile:
        x, _, y = arguments.wave_tile.partition(",")
        if not (x.isdecimal() and y.isdecimal()):
            raise UserError(f"--wave-tile {arguments.wave_tile}: write it as X,Y")
        mesh = load_config(arguments.chip, arguments.settings).mesh
        if int(x) >= mesh.cols or int(y) >= mesh.rows:
            raise UserError(f"--wave-tile {arguments.wave_tile}: the last tile of this chip is "
                            f"{mesh.cols - 1},{mesh.rows - 1}")
        if arguments.sim == "icarus":
            raise UserError(f"--wave-tile {arguments.wave_tile}: Icarus records the whole chip: "
                            "leave it out, or use --sim verilator")
        scope = f"headrace.tile_{int(x)}_{int(y)}"
    if arguments.wave_cycles:
        first, colon, last = arguments.wave_cycles.partition(":")
        if not (colon and first.isdecimal() and (last.isdecimal() or not last)):
            raise UserError(f"--wave-cycles {arguments.wave_cycles}: write it as A:B")
        if last and int(first) >= int(last):
            raise UserError(f"--wave-cycles {arguments.wave_cycles}: A must be less than B")
        start = (int(first) + RESET_CYCLES + 1) * PERIOD_NS * 1000
        end = (int(last) + RESET_CYCLES + 1) * PERIOD_NS * 1000 if last else FOREVER
    return Waves(path=arguments.waves, scope=scope, start=start, end=end)


def _write_json(path: str | None, value: object) -> None:
    from sim.files import write

    if path is None:
        return
    text = json.dumps(value, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    write(path, text.encode())


def _verilog(arguments: argparse.Namespace, console: Console) -> None:
    from hdl.product import write_product

    config = load_config(arguments.chip, arguments.settings)
    files = write_product(config, Path(arguments.output), testbench=arguments.testbench)
    console.print(f"{len(files)} files in {arguments.output}")


def _run(arguments: argparse.Namespace, console: Console) -> None:
    from emu.network.golden import EXPLAIN
    from sim.execute import Options, compare, run
    from sim.files import check_writable, write
    from sim.tables import compare_table, run_tables

    chart = getattr(arguments, "chart", None)
    for path in (None if arguments.json == "-" else arguments.json, chart):
        check_writable(path)
    options = Options(
        simulator=arguments.sim, seed=arguments.seed, inputs=arguments.input,
        waves=_waves(arguments) if arguments.command == "run" else None,
        cycle_limit=arguments.cycle_limit,
    )
    with Console(stderr=True).status("") as status:
        if arguments.command == "run":
            results = [run(
                arguments.workload, chip=arguments.chip, settings=arguments.settings,
                options=options, output=arguments.output, progress=status.update,
            )]
            tables = run_tables(results[0])
        else:
            results = compare(
                arguments.workload, _varied(arguments.vary), chip=arguments.chip,
                settings=arguments.settings, options=options, progress=status.update,
            )
            tables = [compare_table(results)]
    if arguments.json != "-":
        for table in tables:
            console.print(table)
    _write_json(arguments.json, results[0] if arguments.command == "run" else results)
    if chart:
        from sim.charts import layer_page

        write(chart, layer_page(results[0]).encode())
    for condition in results[0]["verified"]["conditions"]:
        print(f"headrace: {condition}: {EXPLAIN[condition]}", file=sys.stderr)


def _dram(arguments: argparse.Namespace, console: Console) -> None:
    from sim.files import check_writable
    from sim.memory.run import dram
    from sim.tables import dram_table

    check_writable(None if arguments.json == "-" else arguments.json)
    with Console(stderr=True).status("") as status:
        result = dram(arguments.trace, settings=arguments.settings, window=arguments.window,
                      commands=arguments.commands, latencies=arguments.latencies,
                      masked=arguments.masked, simulator=arguments.sim, progress=status.update)
    if arguments.json != "-":
        console.print(dram_table(result))
    _write_json(arguments.json, result)
    if result["violations"]:
        raise RunError(f"{result['violations']} commands broke a timing rule of the DRAM")


def _experiment(arguments: argparse.Namespace, console: Console) -> None:
    from sim.experiments.framework import experiment
    from sim.files import check_writable, write
    from sim.tables import experiment_table

    output = None if arguments.json == "-" else arguments.json
    check_writable(arguments.chart)
    with Console(stderr=True).status("") as status:
        found = experiment(arguments.names, quick=arguments.quick, output=output,
                           progress=status.update, jobs=arguments.jobs)
    if arguments.json != "-":
        for study in found:
            console.print(experiment_table(study))
            for name in ("baseline", "null_case", "losing_case"):
                console.print(f"{name.replace('_', ' ')}: {study[name]}", soft_wrap=True)
            for text in study["findings"]:
                console.print(f"- {text}", soft_wrap=True)
            for text in study["skipped"]:
                console.print(f"not run: {text}", soft_wrap=True)
    _write_json(arguments.json, found[0] if len(found) == 1 else found)
    if arguments.chart:
        from sim.charts import experiment_page

        write(arguments.chart, experiment_page(found).encode())


def _quantise(arguments: argparse.Namespace, console: Console) -> None:
    from emu.network.quantise import Options, quantise
    from sim.files import check_writable, write

    check_writable(arguments.output)
    names = tuple(name for name in arguments.int4.split(",") if name)
    model = quantise(arguments.model, arguments.calibrate, Options(
        observer=arguments.observer, percentile=arguments.percentile, int4=names))
    write(arguments.output, model.SerializeToString())
    count = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    console.print(f"{arguments.output}: {len(model.graph.node)} nodes, {count} quantisers; "
                  f"headrace run {arguments.output} runs it", soft_wrap=True)


def _plan(arguments: argparse.Namespace, console: Console) -> None:
    from sim.files import check_writable
    from sim.plan import plan
    from sim.tables import plan_tables

    check_writable(None if arguments.json == "-" else arguments.json)
    result = plan(arguments.workload, chip=arguments.chip, settings=arguments.settings,
                  strategy=arguments.strategy, picture=arguments.picture)
    if arguments.json != "-":
        for table in plan_tables(result):
            console.print(table)
    _write_json(arguments.json, result)


def _mesh(arguments: argparse.Namespace, console: Console) -> None:
    from sim.files import check_writable
    from sim.noc.run import mesh
    from sim.tables import mesh_tables

    check_writable(None if arguments.json == "-" else arguments.json)
    with Console(stderr=True).status("") as status:
        result = mesh(arguments.traffic, size=arguments.size, settings=arguments.settings,
                      multicast=arguments.multicast, soak=arguments.soak, seed=arguments.seed,
                      plot=arguments.plot, simulator=arguments.sim, progress=status.update)
    if arguments.json != "-":
        for table in mesh_tables(result):
            console.print(table)
    _write_json(arguments.json, result)


def _varied(texts: Sequence[str]) -> dict[str, list[str]]:
    varied = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not all(values.split(",")):
            raise UserError(f"--vary {text}: write it as section.name=value,value")
        varied[name] = values.split(",")
    return varied


def _list(arguments: argparse.Namespace, console: Console) -> None:
    from sim.tables import list_tables

    for table in list_tables():
        console.print(table)


def _doctor(arguments: argparse.Namespace, console: Console) -> None:
    from sim.doctor import check
    from sim.tables import doctor_table

    rows = check()
    console.print(doctor_table(rows))
    if any(not row.works and row.needed for row in rows):
        raise UserError("something needed is missing: see the table")


HANDLERS = {"verilog": _verilog, "run": _run, "compare": _run, "dram": _dram, "mesh": _mesh,
            "plan": _plan, "quantize": _quantise, "experiment": _experiment,
            "list": _list, "doctor": _doctor}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        with stopping():
            return _command(argv)
    except UserError as error:
        return _fail(str(error), ERROR_EXIT)
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed: install headrace[sim]", ERROR_EXIT)
    except OSError as error:  # the host's: no memory, no space, a file that went away
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", ERROR_EXIT)
    except KeyboardInterrupt:
        warnings.simplefilter("ignore")  # of hardware that was being made
        return _fail("interrupted", INTERRUPT_EXIT)
    except RunError as error:
        return _fail(str(error), FAILURE_EXIT)


def _fail(text: str, code: int) -> int:
    print(f"headrace: {' '.join(text.split())}", file=sys.stderr)
    return code


def _command(argv: Sequence[str] | None) -> int:
    console = Console()
    arguments = build_parser().parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        console.print(f"headrace {version('headrace')}", highlight=False)
        return 0
    if arguments.command is None:
        build_parser().print_help()
        return ERROR_EXIT
    for path in getattr(arguments, "load", ()):
        _load(path)
    HANDLERS[arguments.command](arguments, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
