"""GPUs: the real binding on a small library in NVML's place, whose cards fall off the bus when they are told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, sys
from simspool.agent.sampling.gpu import Gpus
gpus = Gpus()
for line in sys.stdin:
    if line.strip() == "later":
        gpus._look_at = 0.0
    if line.strip() == "read":
        reading = gpus.read()
        print(json.dumps([reading.of_tree({os.getpid()}), gpus.problem]), flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml.c")
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder


class Cards:
    def __init__(self, library: Path, state: Path, program: Callable[..., Any]) -> None:
        self._state = state
        self.say("ok 0", "ok 0")
        self._program = program(PROGRAM, env={**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STATE": str(state)})
        self.pid = self._program.pid

    def say(self, *cards: str) -> None:
        self._state.write_text("".join(f"{card}\n" for card in cards))

    def read(self) -> tuple[dict[str, float], str]:
        self._program.tell("read")
        values, problem = json.loads(self._program.hear())
        return {name.removeprefix("resources/gpu."): value for name, value in values.items()}, problem

    def later(self) -> None:
        self._program.tell("later")


@pytest.fixture
def cards(library: Path, tmp_path: Path, program: Callable[..., Any]) -> Cards:
    return Cards(library, tmp_path / "state", program)


def test_every_quantity_and_memory_means_used(cards: Cards) -> None:
    cards.say(f"ok 2048 {cards.pid} 1500", "ok 8192")
    assert cards.read() == (
        {
            "utilisation.percent.0": 40.0, "utilisation.memory.0": 25.0, "memory.used.0": 2048.0, "power.0": 123.456, "temperature.0": 61,
            "processes.memory.0": 1500.0,
            "utilisation.percent.1": 41.0, "utilisation.memory.1": 100.0, "memory.used.1": 8192.0, "power.1": 123.456, "temperature.1": 61,
            "processes.memory.1": 0.0,
        },
        "",
    )  # fmt: skip


def test_what_a_card_does_not_have_is_left_out(cards: Cards) -> None:
    cards.say("old 1024", "ok 0")
    values, problem = cards.read()
    assert {n for n in values if n.endswith(".0")} == {"utilisation.percent.0", "utilisation.memory.0", "memory.used.0"}
    assert problem == ""


def test_a_card_that_falls_off_the_bus_leaves_the_others(cards: Cards) -> None:
    assert len(cards.read()[0]) == 12
    cards.say("lost", "ok 0")
    values, problem = cards.read()
    assert {n[-1] for n in values} == {"1"}
    assert problem == "GPU 0: GPU is lost"
    cards.say("ok 0", "ok 0")
    values, problem = cards.read()
    assert (len(values), problem) == (12, "")


def test_when_all_are_lost_the_driver_is_loaded_again_later(cards: Cards) -> None:
    cards.read()
    cards.say("lost", "lost")
    assert cards.read() == ({}, "GPU 0: GPU is lost; GPU 1: GPU is lost")
    cards.say("ok 0", "ok 0")
    assert cards.read()[0] == {}, "not at once"
    cards.later()
    assert len(cards.read()[0]) == 12


def test_a_driver_that_does_not_start_is_tried_again_later(cards: Cards) -> None:
    cards.say("down", "ok 0")
    values, problem = cards.read()
    assert values == {}
    assert problem
    cards.say("ok 0", "ok 0")
    cards.later()
    values, problem = cards.read()
    assert (len(values), problem) == (12, "")


def test_without_a_driver_the_binding_is_not_even_loaded() -> None:
    text = """
import ctypes, sys
from simspool.agent.sampling.gpu import Gpus
try:
    ctypes.CDLL("libnvidia-ml.so.1")
    print("there is a driver here")
except OSError:
    gpus = Gpus()
    print(gpus.read().values, repr(gpus.problem), "pynvml" in sys.modules, gpus.are_due)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    if "there is a driver" in done.stdout:
        pytest.skip("this machine has an NVIDIA driver")
    assert done.stdout == "{} '' False False\n"
