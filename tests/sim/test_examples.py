# SPDX-License-Identifier: Apache-2.0
"""Every example runs as it stands and says what it should."""

import subprocess
import sys
from pathlib import Path

import pytest

from emu.config import load_config
from hdl.prefetch import registry
from hdl.prefetch.registry import POLICIES
from sim.cli import main
from sim.designs import design_key

ROOT = Path(__file__).resolve().parents[2]
PRINTS = {
    "run_layer.py": ("tiny.conv3x3: ", "0 of 4800 outputs differ", "demand: ", "run_ahead: "),
    "own_model.py": (" cycles, 0 outputs differ, first row [",),
    "new_policy.py": ("resnet50.res4_3x3 on small: 0 of 301056 outputs differ", "frugal: "),
}


@pytest.mark.rtl
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_example(name):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    for text in PRINTS[name]:
        assert text in done.stdout
    assert done.stderr == ""


@pytest.fixture
def clean(monkeypatch):
    """Registrations end with the test."""
    monkeypatch.setattr(registry, "POLICIES", dict(POLICIES))


def test_a_loaded_policy_is_part_of_the_design(clean, capsys):
    config = load_config("small")
    before = design_key(config)
    assert main(["list", "--load", str(ROOT / "examples" / "new_policy.py")]) == 0
    assert "frugal" in registry.POLICIES
    assert design_key(config) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "line 1: ZeroDivisionError: division by zero"),
        ("\ndef f(:", "line 2: SyntaxError"),
        ("import nowhere_to_be_found", "line 1: ModuleNotFoundError"),
        (
            "from hdl.prefetch.registry import register\nregister('demand')(object)",
            "prefetch policy 'demand' is built in",
        ),
        (
            "from hdl.prefetch.policy import Policy\nfrom hdl.prefetch.registry import register\n"
            "register('unready')(Policy)",
            "prefetch policy 'unready': ",
        ),
    ],
)
def test_faults_of_a_loaded_file(clean, tmp_path, text, message, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main(["run", "tiny.conv3x3", "--chip", "small", "--load", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("headrace: ") and error.count("\n") == 1


def test_a_file_to_load_that_is_not_there(capsys):
    assert main(["list", "--load", "nowhere.py"]) == 2
    assert capsys.readouterr().err == "headrace: --load nowhere.py: no such file\n"
