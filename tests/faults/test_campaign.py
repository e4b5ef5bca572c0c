"""A sample of every fault; the whole of it is a command: `python tests/faults/campaign.py --scale full`."""

from __future__ import annotations

from pathlib import Path

import pytest
import trials
from checker import check_drained, check_spool
from defects import DEFECTS
from trials import Context, Said, Stage

pytestmark = [pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"), pytest.mark.timeout(240)]

trials.load()

AHEAD = "a power cut takes what the agent had taken in and not sent, its state lies on another disk"

# What the default suite has no time for, or has already, in another test of a campaign's part.
ELSEWHERE = frozenset({
    "scripts killed at random moments", "a script killed at every system call", "a script whose system calls fail",
    "`agent sync` killed at every system call of ingest and drain", "power cuts on ext4 while `each` records",
    "power cuts on ext4 after a silence of `interval`, with and without an agent",
    "a server that is killed again and again under a running agent",
    "two `agent sync` at once, beside scripts", "many processes, threads and forks beside an agent, some killed",
    "hostile servers: each fault, then all of them at random",
    "a server restored from an old backup, at random moments, under a running agent",
    "`agent sync` whose system calls fail", "whole lives under a wrong wall clock; another agent every time",
    "very many runs in one spool, one in a hundred active", "a disk that is read-only for a while",
    "a backlog of very many records in very many segments: seconds to the first send",
    "a spool that is carried away and synced from there and from here, at once and again",
    "bundles of runs that go on, each imported twice, and one server that both spools sync to at once",
    "aborts: reused pids, forks, namespaces, other hosts and boots, requests older than the process",
    "an ext4 disk that answers EIO, or that its kernel makes read-only, for good; then it is mounted again", AHEAD,
    "a segment cut at every byte, the rest gone, zeros or old bytes", "every bit of a segment flipped",
    "the zoo: a specimen of every disease",
})  # fmt: skip
PLAYED = [p for p in trials.PARTS if p[1] not in ELSEWHERE]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> object:
    made = Context(3, "sample", tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.parametrize("part", PLAYED, ids=[f"{p[0]} {p[1]}" for p in PLAYED])
def test_a_sample(context: Context, part: tuple[str, str, object]) -> None:
    out = trials.play(context, *part)  # type: ignore[arg-type]
    if out.skipped:
        pytest.skip(out.skipped)
    assert out.violations == []
    assert out.n > 0


def test_a_catalog_that_is_ahead_of_the_disk(context: Context) -> None:
    [part] = [p for p in trials.PARTS if p[1] == AHEAD]
    assert trials.play(context, *part).violations == []


def test_what_is_left_out_is_there(context: Context) -> None:
    assert {name for _, name, _ in trials.PARTS} > ELSEWHERE


# ---------------------------------------------------------------------- the checker


def test_the_checker_names_what_is_wrong(context: Context) -> None:
    """A record that was promised and is not there, one that is there twice, a run that is gone, a drop that nobody counted."""
    with Stage(context.room(), context.server) as stage:
        stage.record(calls=30, files=1)
        assert check_drained(stage) == []
        [said] = [s.said for s in stage.scripts]
        assert check_spool(stage.spool, [said]) == []
        said.yes["metrics"].append("999")
        said.tried["metrics"] += 1
        assert any(text.startswith("I1: 1 of 28 metrics") for text in check_spool(stage.spool, [said]))
        said.tried["metrics"] -= 5
        assert any(text.startswith("I4") and "nobody made" in text for text in check_spool(stage.spool, [said]))
        said.no["event"] = 50
        assert any("drops are counted" in text for text in check_spool(stage.spool, [said]))
        [blob] = (stage.spool / "runs" / said.run / "blobs").iterdir()
        blob.chmod(0o600)
        blob.write_bytes(b"other")
        assert any(text.startswith("I5") for text in check_spool(stage.spool, [said]))
        gone = Said(run="0" * 22, tried=said.tried)
        assert any(text.startswith("I7") for text in check_spool(stage.spool, [gone]))


def test_a_page_keeps_what_is_written_around_its_tables(tmp_path: Path) -> None:
    import results

    page = tmp_path / "faults.md"
    page.write_text("# Faults\n\nWords before.\n")
    parts = [trials.Part("F1", "a", n=300), trials.Part("F2", "b", skipped="no strace")]
    about = {"date": "d", "scale": "s", "seed": 1, "machine": "m", "seconds": 60}
    found = {"about": about, "parts": [results.as_dict(p) for p in parts]}
    results.write_page(page, found)
    results.write_defects(page, [{"defect": "x", "catcher": "campaign F4", "caught": True}])
    page.write_text(page.read_text() + "Words after.\n")
    results.write_page(page, found)
    text = page.read_text()
    assert text.startswith("# Faults\n\nWords before.\n")
    assert text.endswith("Words after.\n")
    assert text.count("| F1 | a | 300 | 0 | < 0.01 |") == 1
    assert "not played: no strace" in text
    assert "1 of 1 seeded defects caught" in text


def test_the_seeded_defects_fit_the_source() -> None:
    """`sensitivity.py` plays them; a change of the source that one of them does not find any more is noticed here, not there."""
    root = Path(__file__).parents[2]
    for defect in DEFECTS:
        for file, old, new in defect.changes:
            assert (root / file).read_text().count(old) == 1, f"{defect.name}: {file}"
            assert old != new
