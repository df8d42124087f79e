# SPDX-License-Identifier: Apache-2.0
"""`headrace dram`: figures, settings that change the hardware, commands checked independently."""

import gzip
import json
from pathlib import Path

import pytest

from emu.errors import UserError
from sim import dram, runner
from sim.cli import main
from sim.memory.reach import independent_check

DATA = Path(__file__).parents[1] / "data" / "dram"
SIMULATOR = "icarus" if runner.available("icarus") else "verilator"
M1 = "hbm.address_map=M1"
PERMUTED = "RRRRRRRRRRRBGBGRRRRCCCCCOOOOO"


def head(folder, name, count):
    """The first requests of a trace, as a file."""
    text = gzip.decompress((DATA / f"{name}.trace.gz").read_bytes()).decode()
    requests = [line for line in text.splitlines() if not line.startswith("#")]
    path = folder / f"{name}_{count}.trace"
    path.write_text("\n".join(requests[:count]) + "\n")
    return str(path)


def play(folder, trace, *settings, **options):
    """Result of a trace whose commands both checkers found legal, and that what was counted."""
    commands = folder / "commands"
    result = dram(trace, settings=settings, commands=str(commands),
                  **{"simulator": SIMULATOR, **options})
    hbm = result["settings"]
    found = independent_check(commands, hbm["timing"], hbm["refresh"])
    assert found["violations"] == {} and result["violations"] == 0
    assert found["counts"] == result["commands"]
    assert found["last_data_end"] == result["cycles"]
    return result


@pytest.mark.rtl
def test_ladder_to_the_cycle(tmp_path, simulator):
    """Closed bank, row hit, conflict, eight times: they differ by tRCD and tRP exactly.

    A hit: front end 2, tCCD_L 4 to the second column, tCL 14, its second word 1.
    """
    latencies = tmp_path / "latencies"
    result = play(tmp_path, str(DATA / "f_ladder_pc.trace.gz"), "hbm.refresh=none",
                  "hbm.address_map=M1", window=1, latencies=str(latencies), simulator=simulator)
    found = [int(line) for line in latencies.read_text().split()]
    hit = result["front_end_delay"] + 4 + 14 + 1
    assert found == 8 * [hit + 14, hit, hit + 28]


CHANGES = {
    # setting: (trace, requests, other settings, what must hold of (before, after))
    "hbm.scheduler=in_order": (
        "b_rnd_rd_sat", 300, (), lambda a, b: b["cycles"] > 1.5 * a["cycles"]),
    "hbm.page_policy=closed": (
        # Never a conflict, and never a hit either.
        "f_ladder_pc", 24, ("hbm.refresh=none", M1),
        lambda a, b: (a["latency_p50"], a["latency_p99"]) == (35, 49)
        and (b["latency_p50"], b["latency_p99"], b["commands"]["ACT"]) == (35, 35, 24)),
    "hbm.page_policy=timeout": (
        "f_ladder_pc", 24, ("hbm.refresh=none", M1),
        lambda a, b: b["latency_p99"] < a["latency_p99"]),
    "hbm.refresh=all_bank": (
        "c_conflict1_pc", 500, ("hbm.postponed=1", M1),
        lambda a, b: b["commands"]["REFAB"] >= 5 and "REFPB" not in b["commands"]),
    "hbm.postponed=1": (
        "c_conflict1_pc", 500, ("hbm.refresh=all_bank", M1),
        lambda a, b: b["refreshes_owed"] <= 1 < a["refreshes_owed"]),
    "hbm.refresh=none": (
        "c_conflict1_pc", 500, (M1,), lambda a, b: set(b["commands"]) == {"ACT", "PRE", "RD"}
        and a["commands"]["REFPB"] >= 80),
    M1: ("a_seq_rd_sat", 500, (), lambda a, b: b["cycles"] > 1.1 * a["cycles"]),
    "hbm.address_map=M2": (
        # A new row of one bank each; the permutation spreads them over the four banks of a group.
        "c_conflict1_pc", 200, (), lambda a, b: b["cycles"] > 3 * a["cycles"]),
    f"hbm.address_map={PERMUTED}": (
        "c_conflict1_pc", 200, (M1,), lambda a, b: b["cycles"] < 0.5 * a["cycles"]),
    "hbm.row_hit_cap=2": (
        "a_seq_rd_sat", 500, ("hbm.scheduler=fr_fcfs_cap", M1),
        lambda a, b: b["cycles"] != a["cycles"]),
    "hbm.timing=hbm2_b": (
        "b_rnd_rd_sat", 300, (), lambda a, b: b["cycles"] > 1.2 * a["cycles"]),
    "hbm.read_queue=8": (
        "b_rnd_rd_sat", 300, (), lambda a, b: b["cycles"] > 1.2 * a["cycles"]),
    "hbm.write_high=8": (
        "d_mix21_seq", 600, (), lambda a, b: b["cycles"] > 1.05 * a["cycles"]),
    "hbm.write_low=40": (
        "d_mix21_seq", 600, (), lambda a, b: b["cycles"] > 1.01 * a["cycles"]),
}


@pytest.mark.rtl
@pytest.mark.parametrize("setting", CHANGES)
def test_settings_change_the_hardware(setting, tmp_path):
    name, count, others, holds = CHANGES[setting]
    trace = head(tmp_path, name, count)
    before, after = (play(tmp_path, trace, *others, *change) for change in ((), (setting,)))
    assert holds(before, after), (before, after)


@pytest.mark.rtl
def test_ecc(tmp_path):
    """Masked writes read their columns first, whole ones cost nothing; errors are corrected."""
    trace = head(tmp_path, "d_mix21_seq", 600)
    ecc = ("hbm.ecc=true", "hbm.ecc_inject=single,0.05,1")
    plain, whole = (dram(trace, settings=change, simulator=SIMULATOR) for change in ((), ecc))
    some = play(tmp_path, trace, *ecc, masked=4)
    assert "ecc" not in plain and whole["cycles"] <= plain["cycles"] + 2
    assert whole["ecc"]["merged_columns"] == 0
    assert some["ecc"]["merged_columns"] == 2 * (some["writes"] // 4)
    assert some["commands"]["RD"] == plain["commands"]["RD"] + some["ecc"]["merged_columns"]
    for found in (whole["ecc"], some["ecc"]):
        assert found["injected"] == found["corrected"] > 100 and found["uncorrectable"] == 0


KEYS = {
    "cycles", "bandwidth_fraction", "latency_mean", "latency_p50", "latency_p99", "row_hit_rate",
    "commands", "violations", "front_end_delay",
}


@pytest.mark.rtl
def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trace = head(tmp_path, "d_mix21_seq", 150)
    line = ["dram", trace, "--sim", SIMULATOR, "--window", "16", "--set", "hbm.address_map=M2"]
    assert main([*line, "--commands", "c.cmd", "--latencies", "l", "--json", "r.json"]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result.keys() >= KEYS and (result["reads"], result["writes"]) == (100, 50)
    assert len((tmp_path / "l").read_text().split()) == 100
    assert len((tmp_path / "c.cmd").read_text().splitlines()) == sum(result["commands"].values())
    assert "bandwidth, of peak" in capsys.readouterr().out
    assert main([*line, "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {key: again[key] for key in KEYS} == {key: result[key] for key in KEYS}


BAD_TRACES = {
    "empty": ("", "no requests"),
    "comments": ("# nothing\n\n", "no requests"),
    "short": ("0 0x40\n", "line 1: write it as <cycle> <hex byte address> <R|W>"),
    "cycle": ("0 40 R\n-1 40 R\n", "line 2: cycle must be a number below 2**31, not '-1'"),
    "late": ("2147483648 40 R\n", "line 1: cycle must be"),
    "hex": ("0 0xg0 R\n", "line 1: address must be hexadecimal, not '0xg0'"),
    "high": ("0 20000000 R\n", "line 1: address must be below 2**29 (512 MiB), not 20000000"),
    "odd": ("0 44 R\n", "line 1: address must be a multiple of 64, not 44"),
    "kind": ("0 40 X\n", "line 1: the request must be R or W, not 'X'"),
    "one.gz": ("0 40 R\n", "one.gz: not a gzip file"),
}


@pytest.mark.parametrize("name", BAD_TRACES)
def test_bad_traces(name, tmp_path, monkeypatch, capsys):
    text, message = BAD_TRACES[name]
    path = tmp_path / name
    path.write_text(text)
    assert main(["dram", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "0"], "window 0: must be 1 to 65536"),
        (["--window", "65", "--set", "hbm.read_queue=128"], "window 65: must be at most 64 if"),
        (["--set", "mesh.rows=2"], "--set mesh.rows=2: headrace dram has a memory channel only"),
        (["--set", "hbm.refresh=often"], "hbm.refresh: Input should be 'none', 'all_bank' or"),
        (["--set", "hbm.address_map=RGB"], "hbm.address_map must be M1, M2, M2X or 29 letters"),
        (["--set", "hbm.write_high=65"], "hbm.write_high must be at most hbm.write_queue (64)"),
        (["--set", "hbm.write_low=62"], "hbm.write_low must be less than where a drain starts"),
        (["--set", "hbm.postponed=9"], "hbm.postponed: Input should be less than or equal to 8"),
        (["--masked", "-1"], "masked -1: must not be negative"),
        (["--set", "hbm.ecc_inject=single,0.1,1"], "hbm.ecc_inject needs hbm.ecc=true"),
        (["--set", "hbm.ecc=true", "--set", "hbm.ecc_inject=triple,0.1,1"],
         "hbm.ecc_inject must be single|double,RATE,SEED with 0 < RATE <= 1, not 'triple,0.1,1'"),
        (["--set", "hbm.ecc=true", "--set", "hbm.ecc_inject=single,2,1"], "not 'single,2,1'"),
        (["--set", "hbm.ecc=true", "--set", "hbm.ecc_inject=single,0.1"], "not 'single,0.1'"),
        (["--set", "hbm.mib=1"], "address 0x100000 of request 2 is beyond hbm.mib=1"),
        (["--commands", "/nowhere/x"], "cannot write /nowhere/x"),
        (["--latencies", "/nowhere/x"], "cannot write /nowhere/x"),
        (["--json", "/nowhere/x"], "cannot write /nowhere/x"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    path = tmp_path / "t.trace"
    path.write_text("0 0x0 R\n5 100000 W\n")
    assert main(["dram", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_missing_trace():
    with pytest.raises(UserError, match=r"no\.trace: cannot be read: No such file"):
        dram("no.trace")
