"""The child process in which codecarbon measures the machine: `python -m simspool.agent.emissions.measuring PARENT`.

It answers questions on its stdin, a JSON line each, with a JSON line on its stdout, and ends when its stdin does:

    {"ask": "country", "country": "DEU"}   ->  {"country": "DEU", "intensity": 0.38, "of": "Germany, 2023"}; the last two None: not known
    {"ask": "measure"}                     ->  {"cpu": kWh, "ram": kWh, "gpu": kWh, "cards": [...], "how": {...}}, all since it began

Its first line is {"ready": version}; a line {"problem": text} says what could not be done.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from simspool.agent.sampling.gpu import Gpus

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.emissions_data import EmissionsData

_PR_SET_PDEATHSIG = 1
_NICE = 10
_LONG = 86400.0  # s between codecarbon's own measurements: it measures when it is asked
_LOOK = 1.0  # s between two looks at the graphics cards


class _Latest:
    """What codecarbon would write to a file."""

    def __init__(self) -> None:
        self._total: EmissionsData | None = None

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:
        """Called by codecarbon."""
        self._total = total

    def take(self) -> EmissionsData | None:
        """Return what came since the last call."""
        total, self._total = self._total, None
        return total


class _Cards:
    """Who used the graphics cards, and what they drew: sums over looks a second apart."""

    def __init__(self) -> None:
        self._gpus = Gpus()
        self._at = time.monotonic()
        self._joules: dict[int, float] = {}
        self._held: dict[int, dict[int, float]] = {}

    def look(self) -> None:
        """Add what was since the last look."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        reading = self._gpus.read()
        for index in {int(name.rpartition(".")[2]) for name in reading.values} | reading.processes.keys():
            # cards that do not tell their power count alike
            power = reading.values.get(f"resources/gpu.power.{index}", 1.0)
            self._joules[index] = self._joules.get(index, 0.0) + power * seconds
            held = self._held.setdefault(index, {})
            for pid, size in reading.processes.get(index, {}).items():
                held[pid] = held.get(pid, 0.0) + size * seconds

    def take(self) -> list[dict[str, Any]]:
        """Return the sums, and begin anew: weights of the cards, and for each process memory times seconds on each."""
        self.look()
        found = [{"index": i, "weight": w, "held": self._held.get(i, {})} for i, w in self._joules.items()]
        self._joules, self._held = {}, {}
        return found


class Measuring:
    """codecarbon, offline, for the whole machine. Nothing but its answers leaves the process: no file, no network."""

    def __init__(self) -> None:
        from codecarbon import __version__
        from codecarbon.core.emissions import Emissions
        from codecarbon.input import DataSource

        self.version = __version__
        self._data = DataSource()
        self._emissions = Emissions(self._data)
        self._latest = _Latest()
        self._tracker: OfflineEmissionsTracker | None = None
        self.cards: _Cards | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer a question."""
        return self._country(question["country"]) if question["ask"] == "country" else self._measure()

    def _country(self, code: str) -> dict[str, Any]:
        from codecarbon.core.units import Energy
        from codecarbon.external.geography import GeoMetadata

        known = self._data.get_global_energy_mix_data().get(code)
        if known is None:
            return {"country": code, "intensity": None, "of": None}
        if self._tracker is None:
            self._start(code)
        place = GeoMetadata(country_iso_code=code, country_name=known["country_name"])
        intensity = self._emissions.get_country_emissions(Energy.from_energy(1.0), place)
        return {"country": code, "intensity": intensity, "of": f"{known['country_name']}, {known['year']}"}

    def _start(self, code: str) -> None:
        from codecarbon import OfflineEmissionsTracker

        tracker = OfflineEmissionsTracker(
            country_iso_code=code, tracking_mode="machine", measure_power_secs=_LONG, api_call_interval=-1, output_methods=[],
            output_handlers=[self._latest], allow_multiple_runs=True, log_level="critical",
        )  # fmt: skip
        tracker.start()
        if tracker.get_detected_hardware()["gpu_count"]:
            self.cards = _Cards()
        self._tracker = tracker

    def _measure(self) -> dict[str, Any]:
        tracker = self._tracker
        if tracker is None:
            return {"problem": "no country is known yet"}
        tracker.flush()
        total = self._latest.take()
        if total is None:
            return {"problem": "codecarbon could not measure"}
        return {
            "cpu": total.cpu_energy, "ram": total.ram_energy, "gpu": total.gpu_energy, "cards": self.cards.take() if self.cards else [],
            "how": _how(tracker),
        }  # fmt: skip


def _how(tracker: OfflineEmissionsTracker) -> dict[str, str]:
    """Return how each part is measured, or that it is estimated. codecarbon has no public word on it but its description."""
    parts = tracker._conf.get("hardware", [])  # noqa: SLF001
    cpu = next((p for p in parts if p.startswith("CPU(")), "nothing")
    found = tracker.get_detected_hardware()
    return {
        "cpu": {"CPU(Intel Rapl)": "measured (RAPL)", "CPU(Cpu Load)": "estimated (TDP x load)"}.get(cpu, f"estimated ({cpu})"),
        "ram": "estimated (number and size of modules)",
        "gpu": f"measured (driver, {found['gpu_model']})" if found["gpu_count"] else "none found",
    }


def _settle(parent: int) -> None:
    """Be a quiet child that ends with its parent, whatever happens to that."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which asks once more
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    tempfile.tempdir = "/proc"  # else it would be looked for by writing files


def main() -> None:
    """Answer until stdin ends."""
    _settle(int(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer

    def say(line: dict[str, Any]) -> None:
        os.write(answers, json.dumps(line).encode() + b"\n")

    try:
        measuring = Measuring()
    except Exception as error:  # noqa: BLE001 - the agent tells it
        say({"problem": f"codecarbon cannot be used: {type(error).__name__}: {error}"})
        return
    say({"ready": measuring.version})
    waiting = b""
    while True:
        if measuring.cards is not None and not select.select([0], [], [], _LOOK)[0]:
            measuring.cards.look()
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            try:
                say(measuring.answer(json.loads(line)))
            except Exception as error:  # noqa: BLE001 - the agent tells it, and starts another
                say({"problem": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
    os._exit(0)  # codecarbon's threads have nothing left to do
