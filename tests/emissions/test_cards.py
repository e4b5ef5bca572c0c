"""The graphics cards' weights and users: the real binding on a small library in NVML's place. (codecarbon itself needs a real card.)"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, time
from simspool.agent.emissions.measuring import _Cards
cards = _Cards()
time.sleep(0.05)
cards.look()
time.sleep(0.05)
print(json.dumps([cards.take(), cards.take()]))
"""


def test_looks_add_up_and_begin_anew(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: no library can be put in NVML's place")
    source = Path(__file__).parents[1] / "sampling" / "nvml.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(source)], check=True)
    (tmp_path / "state").write_text("ok 100 4242 50\nold\n")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "NVML_STATE": str(tmp_path / "state")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=60)
    (one, other), anew = json.loads(done.stdout)
    assert (one["index"], other["index"]) == (0, 1)
    assert one["weight"] == pytest.approx(123.456 * other["weight"])  # the second has no power to tell
    assert one["held"].keys() == {"4242", "1"}
    assert one["held"]["4242"] == pytest.approx(one["weight"] / 123.456 * (50 << 20))
    assert other["held"] == {}
    assert anew[0]["weight"] < one["weight"]
