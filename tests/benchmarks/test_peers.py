"""The comparison with the tools beside us: what it measures of ours, end to end, and the page that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peer_page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that writes the page."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer_page

    return peer_page


@pytest.mark.timeout(300)  # some seconds on a machine that has nothing else to do
def test_ours_is_measured_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--only", "simspool", "--quick", "--no-venvs", "--seed", "3"]
    places = ["--folder", str(tmp_path), "--output", str(tmp_path / "peers.md"), "--json", str(tmp_path / "peers.json")]
    done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "peers.json").read_text())
    cells = found["cells"]
    assert cells["imports"]["simspool"]["seconds"] > 0
    assert all(200 <= cell["timed"] <= 2000 for cell in cells["calls"].values())
    assert 40 < cells["calls"]["simspool"]["apparent_bytes"] < 80
    assert cells["files"]["simspool"]["stored_2"] - cells["files"]["simspool"]["stored_1"] < 1
    assert set(cells["kills"]["simspool"]) == {"flat_tree", "flat_process", "paced_tree", "paced_process"}
    for cell in cells["kills"]["simspool"].values():
        assert cell["kills"] == 1
        assert cell["found"] == cell["acknowledged"] > 10
        assert cell["repeated"] == 0
    ours, bare = found["sync"]
    assert (ours["points_n"], ours["files_n"]) == (100_000, 10)
    assert bare["points_per_s"] > 0
    text = (tmp_path / "peers.md").read_text()
    assert "a call, median, µs" in text
    assert "failed" not in text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("peers-")], "scratch folders are left"


def test_an_unknown_tool_is_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), "--only", "simvue,nosuch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown: nosuch; there are simspool, simvue" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "nowhere/page.md"], "--output: there is no folder nowhere"),
        (["--folder", "nowhere"], "--folder: there is no folder nowhere"),
        (["--no-venvs", "--only", "simspool,simvue"], "--no-venvs measures only simspool"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "peers.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert " ...\n" not in done.stderr, "something was begun"


def _found(**more: Any) -> dict[str, Any]:
    call = {"median_us": 1.0, "p99_us": 8.0, "ratio": 0.25, "per_s": 400_000.0, "close_s": 0.1, "rss": 2e7, "timed": 100, "rounds": 3}
    run = {"quick": False, "seed": 1, "date": "2026-01-02", "minutes": 3.0, "load": [0.5, 1.5], "kill_after": [1.2, 2.4], "versions": {}}
    calls = {
        "simspool": call | {"apparent_bytes": 56.0, "allocated_bytes": 56.0},
        "trackio": call | {"median_us": 0.5, "apparent_bytes": 448.0, "allocated_bytes": 448.0},
        "wandb": {"failed": "ended with 1: a | b"},
    }
    return {"run": run | {"tools": ["simspool", "trackio", "wandb"]}, "cells": {"calls": calls}, "sync": []} | more


def test_ratios_are_ours_over_the_others_and_say_who_is_better(peer_page: ModuleType) -> None:
    text = peer_page.page(_found())
    figures, ratios = text.split("## Ratios")
    assert "| bytes on disk a call, length | 56 | failed: ended with 1: a \\| b | 448 |" in figures
    assert "| bytes on disk a call, length (less is better) |  | 0.12 |" in ratios
    assert "| a call, median, µs (less is better) |  | **2** |" in ratios
    better = ratios.split("## Where another is better")[1].strip().splitlines()
    assert better == ["- a call, median, µs: trackio 0.43.0, local 0.5, simspool 1"]


def test_the_page_names_losses_of_everybody(peer_page: ModuleType) -> None:
    whole = {"kills": 3, "acknowledged": 1000, "found": 1000, "repeated": 0}
    kills = {
        "simspool": {"flat_tree": whole | {"found": 999}, "flat_process": whole},
        "trackio": {"flat_tree": whole | {"found": 0}, "flat_process": whole | {"repeated": 7}},
        "wandb": {"flat_tree": whole | {"kills": 0, "failed": "logged nothing"}, "flat_process": whole | {"kills": 2, "failed": "x"}},
    }
    text = peer_page.page(_found(cells={"calls": _found()["cells"]["calls"], "kills": kills}))
    assert "| flat out, all of its processes | 1 / 1,000 (0.1 %) | failed: logged nothing | 1,000 / 1,000 (all) |" in text
    assert "| flat out, the script's process | 0 / 1,000 | 0 / 1,000; of 2 kills: x | 0 / 1,000, 7 twice |" in text
    assert "- simspool lost acknowledged calls, flat out, all of its processes: 1 / 1,000 (0.1 %)" in text


def test_what_was_not_measured_has_no_number(peer_page: ModuleType) -> None:
    lines = [
        {"tool": "simspool", "what": "it", "to": "x", "rounds": 2, "points_per_s": 9e5, "points_n": 10, "files_per_s": None, "files_n": 5},
        {"tool": "wandb", "what": "`wandb sync`", "to": "-", "not": "needs an account"},
    ]
    text = peer_page.page(_found(sync=lines))
    assert "| simspool: it | x | 900,000 (10) | too short to tell (5) | - | 2 |" in text
    assert "| wandb: `wandb sync` | - | not measured: needs an account |  |  |  |" in text
