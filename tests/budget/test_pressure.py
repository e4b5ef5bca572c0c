"""Levels and the pressure file: what is said, for how long it counts, and what a script does where nobody says anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from simspool.agent.budget.guard import Guard, Survey
from simspool.agent.budget.measure import Usage, measure
from simspool.sdk.budget import Budget, Floor
from simspool.sdk.pressure import Look
from simspool.spool import Spool, pressure
from simspool.spool.pressure import FILES, FREE, METRICS, SAMPLES, Pressure, level_after

WORD = Pressure(METRICS, 0.91, "it is full", 5.0, ("loss*",))


def _change(spool: Spool, **fields: object) -> None:
    path = Path(pressure.path_of(spool.path))
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_level_rises_at_one_bound_and_falls_below_another() -> None:
    level, seen = FREE, []
    for use in (0.5, 0.79, 0.80, 0.75, 0.71, 0.69, 0.90, 0.85, 0.81, 0.79, 0.96, 0.86, 0.84, 0.5, 1.3, 0.0):
        level = level_after(level, use)
        seen.append(level)
    assert seen == [0, 0, 1, 1, 1, 0, 2, 2, 2, 1, 3, 3, 2, 0, 3, 0]


def test_a_word_counts_until_it_is_over(spool: Spool) -> None:
    assert pressure.read(spool.path) is None
    pressure.publish(spool.path, WORD)
    found = pressure.read(spool.path)
    assert found is not None
    assert found[0] == WORD
    assert 100 < found[1] <= pressure.LASTS
    _change(spool, until=5)
    assert pressure.read(spool.path) is None, "the agent that said it has died"
    _change(spool, until=1 << 62)
    assert pressure.read(spool.path) is None, "nobody's word counts for ever"


def test_on_another_host_the_wall_clocks_count(spool: Spool) -> None:
    pressure.publish(spool.path, WORD)
    _change(spool, boot_id="00" * 16, until=0)
    found = pressure.read(spool.path)
    assert found is not None
    assert found[0].level == METRICS
    _change(spool, expires=17.0)
    assert pressure.read(spool.path) is None


_ODD = '{"level": "x", "use": 1, "why": "", "since": 0, "until": 1, "expires": 1}'


@pytest.mark.parametrize("text", ["", "[]", '{"level": 3}', "{", _ODD])
def test_a_broken_word_is_none(spool: Spool, text: str) -> None:
    path = Path(pressure.path_of(spool.path))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert pressure.read(spool.path) is None


def test_a_script_hears_the_agent_and_else_looks_at_the_disk(spool: Spool) -> None:
    roomy, full = Budget(free=Floor()), Budget(free=Floor(bytes=1 << 60))
    assert Look(spool.path, roomy).now().level == FREE
    look = Look(spool.path, full)
    found = look.now()
    assert found.level == FILES
    assert "are to stay free" in found.why
    pressure.publish(spool.path, WORD)
    assert look.now().level == METRICS, "the agent knows better"
    pressure.withdraw(spool.path)
    assert look.now().level == FILES
    hears = Look(spool.path, roomy)
    pressure.publish(spool.path, WORD)
    assert hears.now().why == "it is full"
    _change(spool, until=5)
    assert hears.now().level == FREE


def test_all_that_lies_there_is_measured_and_links_once(spool: Spool, tmp_path: Path) -> None:
    before = measure(spool.path)
    folder = Path(spool.path) / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(os.urandom(100_000))
    for n in range(5):
        os.link(folder / "a", folder / f"link{n}")
    (folder / "anybody's").write_bytes(b"y" * 50_000)
    (folder / "pointer").symlink_to(tmp_path)
    found = measure(spool.path)
    there = [folder.parent, folder, folder / "a", folder / "anybody's", folder / "pointer"]
    blocks = sum(p.lstat().st_blocks * 512 for p in there)
    assert found.bytes - before.bytes == blocks
    assert found.inodes - before.inodes == 5


def test_the_guard_says_what_it_finds_and_takes_it_back(spool: Spool) -> None:
    said: list[str] = []
    guard = Guard(spool, Budget(bytes=2_000_000, free=Floor()), report=said.append)
    guard.look(Survey())
    assert (guard.level, pressure.read(spool.path), said) == (FREE, None, [])
    big = Path(spool.path) / "runs" / "big"
    big.parent.mkdir(exist_ok=True)
    big.write_bytes(b"x" * 1_900_000)
    guard._walk_at = 0.0  # noqa: SLF001 - a walk is due
    guard.look(Survey(watched=frozenset({"loss"})))
    assert guard.level == FILES
    word = pressure.read(spool.path)
    assert word is not None
    assert word[0].level == FILES
    assert word[0].watched == ("loss",)
    assert "that it may take" in word[0].why
    assert said == [f"no files are taken, metrics are thinned, no resource samples are taken: {word[0].why}"]
    guard._walk_at = float("inf")  # noqa: SLF001 - and no other
    guard.look(Survey(grown=400_000))
    assert guard.use > 1.1, "between two walks, what was ingested counts"
    assert not guard.wants_room
    guard.look(Survey(grown=400_000))
    assert guard.wants_room
    guard.freed(Usage(800_000))
    assert guard.level == SAMPLES
    assert not guard.wants_room
    guard.freed(Usage(700_000))
    assert guard.level == FREE
    assert pressure.read(spool.path) is None
    assert guard.as_dict()["level"] == 0


def test_inodes_count_as_bytes_do(spool: Spool) -> None:
    folder = Path(spool.path) / "runs"
    folder.mkdir(exist_ok=True)
    for n in range(95):
        (folder / str(n)).touch()
    guard = Guard(spool, Budget(inodes=105, free=Floor()))
    guard.look(Survey())
    assert guard.level == METRICS
    assert "of 105 files" in guard.standing.why


def test_an_agent_that_starts_takes_back_what_the_last_one_said(spool: Spool) -> None:
    pressure.publish(spool.path, WORD)
    Guard(spool, Budget(free=Floor())).look(Survey())
    assert not os.path.exists(pressure.path_of(spool.path))
