# SPDX-License-Identifier: Apache-2.0
"""Random networks against ONNX Runtime: in integers, in the interpreter, on the RTL.

The RTL runs `PER_RUN` networks of one program at once; if outputs differ, each network is run alone
to say which, by its seed, and shrunk on the RTL.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from emu.compiler import compile_network
from emu.config import load_config
from emu.interpreter import execute
from emu.network.golden import evaluate
from emu.network.importer import import_onnx
from emu.network.tensors import random_inputs
from sim import run
from sim.errors import RunError
from tests.sim.random_networks import RECIPE, build, random_recipe, shrunk

PER_RUN, RUNS = 25, 8
"""200 networks."""
CHIPS = (("small", []), ("small", ["mesh.cols=1", "mesh.rows=3"]),
         ("small", ["scratchpad.kib=16"]), ("small", ["scratchpad.resident=false"]),
         ("base", []), ("small", ["mesh.multicast=false"]))


def outputs_of(recipes, chip, changes, seed):
    """(what ONNX Runtime says, what the interpreter computes)."""
    network = import_onnx(build(recipes), "fuzz")
    inputs = random_inputs(network, seed)
    golden = evaluate(network, inputs).outputs
    program = compile_network(network, load_config(chip, changes), check=False)
    return golden, execute(program, inputs)


@given(RECIPE)
@settings(max_examples=60, deadline=None, derandomize=True, print_blob=True,
          suppress_health_check=list(HealthCheck))
def test_any_network_in_the_interpreter(recipe):
    """Shrunk to the smallest recipe that fails."""
    chip, changes = CHIPS[recipe[0] % len(CHIPS)]
    golden, found = outputs_of([recipe], chip, changes, recipe[0] % 1000)
    for name, value in golden.items():
        np.testing.assert_array_equal(found[name], value)


def test_failures_are_shrunk():
    """To one step, one channel, one pixel if the failure needs no more."""
    recipe = next(r for r in map(random_recipe, range(100)) if len(r[-1]) > 4
                  and [step[0] for step in r[-1]].count("conv") > 1)
    least = shrunk(recipe, lambda r: any(step[0] == "conv" for step in r[-1]) and r[4] > 2)
    assert least[2:6] == (1, 1, 3, 1) and [step[0] for step in least[-1]] == ["conv"]


@pytest.mark.rtl
@pytest.mark.parametrize("number", range(RUNS))
def test_networks_on_the_small_chip(tmp_path, number):
    check(tmp_path, range(PER_RUN * number, PER_RUN * (number + 1)), "small", [])


@pytest.mark.slow
@pytest.mark.rtl
@pytest.mark.parametrize("number", range(RUNS, 5 * RUNS))
def test_more_networks(tmp_path, number):
    chip, changes = CHIPS[number % len(CHIPS)]
    check(tmp_path, range(PER_RUN * number, PER_RUN * (number + 1)), chip, changes)


def check(folder, seeds, chip, changes):
    path = folder / "networks.onnx"
    path.write_bytes(build([random_recipe(seed) for seed in seeds]))
    print(f"random networks with seeds {list(seeds)} on {chip} {changes}")

    def failure(recipe):
        path.write_bytes(build([recipe]))
        try:
            run(str(path), chip=chip, settings=changes)
        except RunError as error:
            return str(error)
        return ""

    try:
        found = run(str(path), chip=chip, settings=changes)
    except RunError as error:
        for recipe in map(random_recipe, seeds):
            if failure(recipe):
                least = shrunk(recipe, lambda each: bool(failure(each)))
                pytest.fail(f"network {recipe}, shrunk to {least}: {failure(least)}")
        pytest.fail(f"only together: {error}")
    assert found["verified"]["mismatches"] == 0 and found["verified"]["outputs"] > 100
