# SPDX-License-Identifier: Apache-2.0
"""`headrace mesh`: curves, fairness, soaks and traces of the RTL mesh; bad input."""

import json

import pytest

from emu.errors import UserError
from sim import mesh
from sim.cli import main
from sim.errors import RunError
from sim.noc import nodes, run
from sim.noc.reference import BOOKSIM

KEYS = {"zero_load_latency", "saturation", "accepted_at_full_load", "worst_node_accepted",
        "injected", "delivered", "reordered", "curve"}
pytestmark = pytest.mark.rtl


def test_uniform_traffic_beside_booksim(tmp_path, capsys):
    """At most two cycles a hop, a higher saturation with the same buffers, and fair."""
    page, out = tmp_path / "u.html", tmp_path / "u.json"
    assert main(["mesh", "--traffic", "uniform", "--plot", str(page), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found) >= KEYS
    assert found["zero_load_latency"] == pytest.approx(2.5 + 1, abs=0.05)  # hops + 1
    reference = BOOKSIM["uniform"][0]
    assert found["saturation"] > reference.saturation + 0.05
    assert found["accepted_at_full_load"] > reference.accepted + 0.05
    assert found["worst_node_accepted"] > 0.8 * found["accepted_at_full_load"]
    assert found["injected"] == found["delivered"] > 500_000 and not found["reordered"]
    offered = [point["offered"] for point in found["curve"]]
    assert offered == sorted(offered) and offered[-1] == 1.0
    assert "BookSim 2, 1 VC x 4" in page.read_text()
    assert "saturation" in capsys.readouterr().out


def test_a_hotspot_starves_nobody(monkeypatch):
    monkeypatch.setattr(run, "NODE_LOADS", (0.05, 1.0))
    fair = mesh("hotspot:0,0")
    assert fair["accepted_at_full_load"] == pytest.approx(1 / 16, abs=1e-3)
    assert fair["worst_node_accepted"] > 0.95 * fair["accepted_at_full_load"]


def test_random_multicast_loses_doubles_and_reorders_nothing():
    found = mesh("uniform", multicast=0.2, soak=20_000, seed=7)
    assert found["injected"] == found["delivered"] > 200_000
    assert found["reordered"] == found["stray"] == 0 and found["same_checksum"]


def test_a_broadcast_crosses_each_link_of_its_tree_once(monkeypatch):
    monkeypatch.setattr(run, "NODE_LOADS", (0.5, 1.0))
    tree, single = mesh("broadcast:1,2"), mesh("scatter:1,2")
    assert 16 * tree["link_flits_per_delivery"] == pytest.approx(15)
    assert single["link_flits_per_delivery"] == pytest.approx(single["mean_hops"], rel=0.01)


def test_a_trace_to_the_cycle(tmp_path):
    """A flit takes hops + 1 cycles; those of one packet follow one another."""
    path = tmp_path / "packets"
    path.write_text("# cycle source destination flits\n50 0 15 3\n\n50 5 5 1\n200 3 12 2\n")
    found = mesh(f"trace:{path}")
    latencies = [7, 8, 9, 1, 7, 8]
    assert found["delivered"] == len(latencies)
    assert found["latency_mean"] == pytest.approx(sum(latencies) / len(latencies))
    assert found["curve"][0]["latency_max"] == max(latencies)
    assert found["zero_load_latency"] is None and found["saturation"] is None


@pytest.mark.slow
def test_a_checker_that_a_faulty_mesh_does_not_pass(monkeypatch):
    """Flits that claim another rectangle than they travelled by are found."""
    honest = nodes.Receiver.elaborate

    def shifted(self, platform):
        self.x = self.x ^ 1
        return honest(self, platform)

    monkeypatch.setattr(nodes.Receiver, "elaborate", shifted)
    with pytest.raises(RunError, match="at nodes they were not sent to"):
        mesh("uniform", soak=1000)


@pytest.mark.parametrize(("traffic", "options", "message"), [
    ("random", {}, "must be one of uniform, transpose"),
    ("uniform:3", {}, "must be one of"),
    ("hotspot", {}, "must be one of"),
    ("hotspot:4,0", {}, "node 4,0 is outside of the 4x4 mesh"),
    ("hotspot:a,0", {}, "write the node as hotspot:x,y"),
    ("transpose", {"size": "4x3"}, "as many rows as columns"),
    ("exchange", {"size": "3x4"}, "an even number of columns"),
    ("uniform", {"size": "4"}, "write it as COLSxROWS"),
    ("uniform", {"size": "40x4"}, "mesh.cols"),
    ("uniform", {"settings": ["hbm.mib=4"]}, "has a mesh only"),
    ("uniform", {"multicast": 1.5}, "must be 0 to 1"),
    ("uniform", {"soak": -1}, "soak -1"),
    ("uniform", {"seed": -1}, "seed -1"),
    ("uniform", {"plot": "/nowhere/x.html"}, "cannot write /nowhere/x.html"),
    ("trace:/nowhere/x", {}, "cannot be read"),
])
def test_bad_input(traffic, options, message):
    with pytest.raises(UserError, match=message):
        mesh(traffic, **options)


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no packets"),
    ("1 2 3\n", "line 1: must be"),
    ("1 2 3 x\n", "line 1: must be"),
    ("0 0 1 1\n0 0 16 1\n", "line 2: destination 16 is not in 0 .. 15"),
    ("0 99 1 1\n", "source 99"),
    ("-1 0 1 1\n", "cycle -1"),
    ("0 0 1 0\n", "flits 0 is not in 1"),
])
def test_bad_traces(tmp_path, text, message):
    path = tmp_path / "packets"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        mesh(f"trace:{path}")
