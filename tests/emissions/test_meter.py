"""Shares of real runs, measured by real codecarbon; who is live is told by the test, a second agent is a second `Emissions`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from emitting import Script, about, events, measured, until

from simspool.agent.emissions.meter import Emissions
from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.sdk.sampling.peers import Peers
from simspool.spool import Spool

JOULES = 3.6e6  # in a kWh
pytestmark = pytest.mark.timeout(180)  # codecarbon takes long to start on a busy machine


class Site:
    """`Emissions` in the test's process."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.live: list[LiveWriter] = []
        self.said: list[str] = []
        self.begin()

    def begin(self, country: str | None = None) -> None:
        self.notes = RunNotes(self.spool)
        self.emissions = Emissions(self.spool, self.notes, lambda: self.live, country=country, every=1.0, report=self.said.append)
        self.emissions.start()

    def end(self) -> None:
        self.emissions.stop()
        self.notes.close()

    def add(self, script: Script, country: str | None = "DEU") -> None:
        options: dict[str, Any] = {"enable_emission_metrics": True} | ({"emissions_country": country} if country else {})
        found = Peers(self.spool.run(script.run)).living()
        self.live = [*self.live, *(LiveWriter(script.run, w, "creator", h, options) for w, h in found)]

    def drop(self, run: str) -> None:
        self.live = [writer for writer in self.live if writer.run != run]

    def samples(self, run: str, count: int) -> list[tuple[int, float, float, float, float]]:
        until(lambda: len(measured(self.spool, run)) >= count, f"{count} samples; {self.emissions.problem}")
        return measured(self.spool, run)


@pytest.fixture
def site(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SIMSPOOL_COUNTRY", "DEU")
    made = Site(spool)
    yield made
    made.end()


def _adds_up(found: list[tuple[int, float, float, float, float]]) -> None:
    """Totals are the sums of the deltas exactly, and steps count up from 0."""
    energy = emissions = 0.0
    for n, (step, total, delta, total_co2, delta_co2) in enumerate(found):
        energy, emissions = energy + delta, emissions + delta_co2
        assert (step, total, total_co2) == (n, energy, emissions)
        assert delta >= 0.0


def test_shares_follow_the_load_stay_below_the_machines_and_go_on_after_a_restart(site: Site, script: Callable[..., Script]) -> None:
    busy, lazy = script("spin"), script("sleep")
    site.add(busy)
    site.add(lazy)
    until(lambda: site.emissions._mark, "a first measurement")
    first = dict(site.emissions._mark.energy)
    site.samples(busy.run, 2)
    site.drop(lazy.run)  # it has ended: its last interval is recorded at once
    before = len(measured(site.spool, lazy.run))
    site.samples(lazy.run, before + 1)
    site.end()
    last = dict(site.emissions._mark.energy)
    spun, slept = measured(site.spool, busy.run), measured(site.spool, lazy.run)
    _adds_up(spun)
    _adds_up(slept)
    machine = sum(last.values()) - sum(first.values())
    assert 0.0 < spun[-1][1] + slept[-1][1] <= machine
    assert spun[-1][1] > 5 * slept[-1][1]
    # on a machine with nothing else to do nearly all of the processor's energy would be its; others may be at work here
    cpu = last["cpu"] - first["cpu"]
    assert 0.02 * cpu * JOULES < spun[-1][1] * JOULES <= machine * JOULES
    said = about(site.spool, busy.run)
    assert events(site.spool, busy.run) == []
    assert said["country"] == "DEU"
    assert said["intensity"] == pytest.approx(0.38095)
    assert said["intensity_of"] == "Germany, 2023"
    assert said["cpu"] in {"measured (RAPL)", "estimated (TDP x load)"}
    assert said["ram"].startswith("estimated")
    assert "codecarbon" in said["method"]
    assert spun[-1][3] == pytest.approx(spun[-1][1] * said["intensity"])
    longest = max(delta for _, _, delta, _, _ in spun)
    time.sleep(4)  # nobody measures; the script spins on
    site.begin()
    after = site.samples(busy.run, len(spun) + 1)
    _adds_up(after)
    assert after[: len(spun)] == spun
    assert after[len(spun)][2] < 3 * longest


def test_a_child_that_dies_is_started_again_and_one_that_nobody_needs_ends(
    site: Site, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simspool.agent.emissions.meter._LINGER", 1.0)
    assert site.emissions.child is None
    busy = script("spin")
    site.add(busy)
    before = len(site.samples(busy.run, 1))
    first = site.emissions.child
    assert first is not None
    assert os.getpriority(os.PRIO_PROCESS, first) >= 10
    os.kill(first, signal.SIGKILL)
    second = until(lambda: (found := site.emissions.child) != first and found, "another child")
    _adds_up(site.samples(busy.run, before + 1))
    assert any("the measuring process: it ended (SIGKILL)" in message for message in events(site.spool, busy.run))
    assert len(site.said) == 1
    until(lambda: site.emissions.problem == "", "no problem any more")
    site.drop(busy.run)
    until(lambda: site.emissions.child is None and not os.path.exists(f"/proc/{second}"), "no child")


def test_unknown_and_missing_countries_are_refused_once_and_others_are_measured(site: Site, script: Callable[..., Script]) -> None:
    nowhere, without, good = script("sleep"), script("sleep"), script("sleep")
    site.add(nowhere, "XYZ")
    site.add(without, None)
    site.add(good, "FRA")
    site.samples(good.run, 1)
    for run, why in ((nowhere.run, "no electricity data for the country 'XYZ'"), (without.run, "no country is configured")):
        messages = events(site.spool, run)
        assert [why in m and '[emissions]\ncountry = "DEU"' in m for m in messages] == [True]
        assert sum(why in line for line in site.said) == 1
        assert measured(site.spool, run) == []
    assert about(site.spool, good.run)["country"] == "FRA"
