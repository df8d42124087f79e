# SPDX-License-Identifier: Apache-2.0
# Everything starts here: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH ?=
SIM ?= verilator
SEED ?= 1
WAVES ?=
VARIANT ?=
TEST_JOBS ?= 2
unexport BENCH SIM SEED WAVES VARIANT  # cocotb reads WAVES and SIM from the environment

.PHONY: help setup run test test-fast fuzz bench bench-dram bench-mesh sim lint clean distclean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.complete  ## prepare .venv with the locked packages

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) tools/check_host.py
	@echo "preparing $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: setup  ## stream three layers through the base chip and print the tables
	@$(BIN)/python -m sim.demo

test: setup  ## all tests but the slow ones
	@$(BIN)/python -m pytest -q -m "not slow" -n $(TEST_JOBS) --maxschedchunk 1

test-fast: setup  ## tests that build no hardware
	@$(BIN)/python -m pytest -q -m "not slow and not rtl"

bench: setup  ## print every figure this project claims; writes build/bench.json
	@$(BIN)/python -m sim.bench

bench-dram: setup  ## every reference trace of the memory channel beside two simulators
	@$(BIN)/python -m sim.memory.reach

bench-mesh: setup  ## the mesh beside BookSim 2: curves, fairness, ten million flits
	@$(BIN)/python -m sim.noc.reach

fuzz: setup  ## 800 more random networks and 180 random layers and chains on several machines
	@$(BIN)/python -m pytest -q -m slow -n $(TEST_JOBS) tests/sim/test_fuzz.py tests/sim/test_layers.py

sim: setup  ## list the component benches, or run one: BENCH=mesh.router SIM=icarus WAVES=r.vcd SEED=7
	@$(BIN)/python -m sim.bench_cli "$(BENCH)" --sim "$(SIM)" --seed "$(SEED)" --waves "$(WAVES)" \
		--variant "$(VARIANT)"

lint: setup  ## style, types and the import contract
	@$(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:  ## remove what builds and runs left here
	@rm -rf build out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

distclean: clean  ## and the virtual environment
	@rm -rf $(VENV) *.egg-info
