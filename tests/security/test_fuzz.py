"""A short run of the fuzz command for each parser; the long ones are docs/security.md's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
BROKEN = """
import sys
import time

sys.path.insert(0, sys.argv.pop(1))
import fuzz


class Broken:
    documented = (ValueError,)
    kept = []

    def __init__(self, folder):
        self.what = sys.argv[sys.argv.index("--seed") + 1]

    def make(self, random):
        return random.random()

    def run(self, given):
        if self.what == "1":
            raise KeyError("x")
        if self.what == "2":
            time.sleep(60)
        if self.what == "3":
            self.kept.append(b"x" * 100_000)
        raise ValueError


fuzz._subject = lambda parser, folder: Broken(folder)
fuzz._COMMAND = (__file__, fuzz.__file__.rpartition("/")[0])
sys.exit(fuzz.main())
"""
PARSERS = ("frames", "segments", "drain-bodies", "server-answers", "inbox", "receipts", "alerts", "config")


@pytest.mark.parametrize("parser", PARSERS)
def test_changed_specimens_end_in_a_value_or_a_documented_error(parser: str) -> None:
    """A15, A28: 20,000 inputs, or as many as four seconds allow; none hangs, ends the process or takes its memory."""
    command = [sys.executable, str(FUZZ), "--parser", parser, "--inputs", "20000", "--seed", "3", "--seconds", "4", "--patience", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 faults" in done.stdout


def test_the_command_notices(tmp_path: Path) -> None:
    """A parser that raises what it does not document, hangs, or takes the memory, is named with its input; and one that takes nothing."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    for seed, expected in (("1", "KeyError"), ("2", "hangs"), ("3", "memory"), ("4", "specimens")):
        done = subprocess.run(
            [sys.executable, str(script), str(FUZZ.parent), "--parser", "frames", "--inputs", "20000", "--seed", seed, "--patience", "1",
            "--growth", "32"],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"FAULT: {expected}" in done.stdout or f"input 0 {expected}" in done.stdout, done.stdout[-2000:]
