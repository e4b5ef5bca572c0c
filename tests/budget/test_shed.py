"""Shedding: in order, journaled, never of what must stay, declared to servers; done again after a kill, with no second effect."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import sync
from memory_target import MemoryTarget
from recorded import add_file, begin, fill
from shedding import Opened, Server, go_on, head_of, opened, stop_after

from simspool.agent.budget import account
from simspool.agent.budget.shed import Shedder
from simspool.agent.catalog.store import catalog_path
from simspool.agent.journal import Journal
from simspool.agent.retention import Retention
from simspool.agent.scrub import scrub
from simspool.agent.status import overview
from simspool.agent.targets.port import Limits
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Durability, Kind, Spool, Writer, atomic, blobs, ids, layout, shed

pytestmark = pytest.mark.usefixtures("small_segments")
KNOWN = [KnownTarget("server", "simspool", "memory://", server="memory")]


def old_run(spool: Spool, file: Path | None = None, name: str = "old") -> str:
    """Record a run: an event, many metrics (several segments of nothing else), a file and an event, metrics, its close."""
    run, writer = begin(spool, name)
    fill(writer, 10, events=1)
    fill(writer, 5000, start=10)
    fill(writer, 10, events=1, start=5010)
    if file is not None:
        add_file(spool, run, writer, file)
        blobs.publish(spool, spool.run(run), [p.name for p in Path(spool.run(run).blobs).iterdir()])
    fill(writer, 3000, start=5020)
    assert writer.close({"status": "completed"})
    return run


def books(spool: Spool) -> dict[str, Any]:
    """Return the totals, which must balance."""
    with opened(spool) as o:
        found = overview(o.catalog, spool, KNOWN)
    assert found["balanced"], found["imbalances"]
    return found


def shed_records(spool: Spool, run: str) -> int:
    folder = spool.run(run)
    return sum(last - first + 1 for w in folder.writer_ids() for _, first, last in shed.segments(folder.path, w))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.bin"
    path.write_bytes(os.urandom(50_000))
    return path


def test_files_go_first_then_numbers_and_never_what_matters(spool: Spool, file: Path) -> None:
    run = old_run(spool, file)
    [digest] = [p.name for p in Path(spool.run(run).blobs).iterdir()]
    with opened(spool) as o:
        assert [what for _, what in o.shed_all()] == ["1 file", f"{shed_records(spool, run):,} records with metrics"]
    assert not os.path.exists(spool.pool_path(digest))
    assert shed.files(spool.run(run).path) == {digest}
    [writer] = spool.run(run).writer_ids()
    numbers = [s.number for s in layout.segments(spool.run(run).writer(writer))]
    assert numbers[0] == 1
    assert len(numbers) < numbers[-1], "some have gone"
    assert {f.kind for f in scrub(spool)} == {"shed"}, "declared, no damage"
    target = MemoryTarget()
    report = sync(spool, target)
    assert (report.state, report.files) == ("done", 0)
    found = books(spool)
    assert found["damage"] == 0
    assert found["records"]["lost"] == shed_records(spool, run) > 3000
    assert found["records"]["acknowledged"] == found["records"]["recorded"] - found["records"]["lost"]
    assert found["records"]["waiting"] == found["files"]["waiting"] == 0
    assert found["files"]["lost"] == 1
    assert {span["reason"] for span in found["lost"]} == {"shed"}


def test_the_kept_records_are_those_with_events_and_status(spool: Spool, file: Path) -> None:
    run = old_run(spool, file)
    with opened(spool) as o:
        o.shed_all()
    from simspool.sdk import Client

    client = Client(spool=spool.path)
    found = client.get_run(run)
    assert found["status"] == "completed"
    assert [e["message"] for e in client.get_events(run)] == ["event 0", "event 0"]


def test_no_more_goes_than_is_wanted(spool: Spool, tmp_path: Path) -> None:
    run, writer = begin(spool)
    for size in (10_000, 30_000, 20_000):
        (tmp_path / str(size)).write_bytes(os.urandom(size))
        add_file(spool, run, writer, tmp_path / str(size))
    fill(writer, 9000, events=1)
    writer.close({"status": "completed"})
    with opened(spool) as o:
        assert [o.shedder.next(runs=False, wanted=35_000)[1] for _ in range(2)] == ["2 files", "1 file"]  # type: ignore[index]
        found = o.shedder.next(runs=False, wanted=70_000)
        assert found is not None
        assert 70_000 <= found[2].bytes < 140_000, "two segments"
    [first, *_] = shed.segments(spool.run(run).path, writer.id_text)
    assert first[0] == 2, "the oldest"


def test_live_runs_lose_nothing_and_the_oldest_goes_first(spool: Spool, file: Path) -> None:
    first, second = old_run(spool, None, "first"), old_run(spool, None, "second")
    live, writer = begin(spool, "live")
    fill(writer, 6000)
    add_file(spool, live, writer, file)
    with opened(spool) as o:
        assert [run for run, _ in o.shed_all(runs=True)] == [first, second, first, second]
    assert os.path.isdir(spool.run(live).path)
    assert not os.path.exists(spool.run(first).path)
    writer.close({"status": "completed"})


def test_a_file_that_a_live_run_has_too_stays(spool: Spool, file: Path) -> None:
    run = old_run(spool, file)
    live, writer = begin(spool, "live")
    digest = add_file(spool, live, writer, file)
    with opened(spool) as o:
        assert "1 file" not in [what for _, what in o.shed_all()]
    assert os.path.exists(os.path.join(spool.run(run).blobs, digest))
    writer.close({"status": "completed"})
    target = MemoryTarget()
    sync(spool, target)
    assert target.blobs == {digest}


def test_a_link_of_a_run_that_is_not_ingested_yet_stays(spool: Spool, file: Path) -> None:
    run = old_run(spool, file)
    with opened(spool) as o:
        late, writer = begin(spool, "late")
        digest = add_file(spool, late, writer, file)
        assert "1 file" not in [what for _, what in o.shed_all()]
    assert os.path.exists(spool.pool_path(digest))
    assert run
    writer.close({"status": "completed"})


def test_a_file_that_is_saved_again_is_sent(spool: Spool, file: Path) -> None:
    run = old_run(spool, file)
    with opened(spool) as o:
        o.shed_all()
    again = Writer(spool.run(run).writers, ids.from_text(run), durability=Durability.LAZY)
    again.record(Kind.ATTACH, {"reason": "reconnect"})
    digest = add_file(spool, run, again, file)
    again.close({"status": "completed"})
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    assert target.blobs == {digest}
    assert books(spool)["files"]["lost"] == 0


def test_a_run_that_is_opened_in_the_middle_keeps_its_file(spool: Spool, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = old_run(spool, file)
    real = atomic.rename

    def rename(source: str, target: str) -> None:
        if target.endswith(".shed"):  # just now, somebody opens the run
            writer = Writer(spool.run(run).writers, ids.from_text(run), durability=Durability.LAZY)
            writer.record(Kind.ATTACH, {"reason": "reconnect"})
            add_file(spool, run, writer, file)
            writer.close({"status": "completed"})
        real(source, target)

    monkeypatch.setattr(atomic, "rename", rename)
    with opened(spool) as o:
        o.shedder.next(runs=False)
    monkeypatch.undo()
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    assert len(target.blobs) == 1


@pytest.mark.parametrize("rebuilt", [False, True])
def test_each_server_gets_what_is_left_after_what_it_had(spool: Spool, rebuilt: bool) -> None:
    """Servers that stopped anywhere, in the middle of what was shed too: their chains differ, and none takes that for a clone."""
    run = old_run(spool)
    small = Limits(decoded=90_000)  # 45 kB a request
    targets = []
    for n in range(4):
        target = MemoryTarget(small, server=f"s{n}")
        stop_after(target, n)
        targets.append(target)
        sync(spool, target, timeout=0.2)
    had = [max((mark for mark, _ in t.marks_of.values()), default=0) for t in targets]
    assert len(set(had)) == len(had)
    with opened(spool) as o:
        o.shed_all()
    if rebuilt:
        os.unlink(catalog_path(spool))
    [writer] = spool.run(run).writer_ids()
    for target, mark in zip(targets, had, strict=True):
        go_on(target)
        report = sync(spool, target)
        assert (report.state, report.refused, target.twice) == ("done", 0, 0)
        spans = [gap for r in target.ranges if r.first > mark for gap in head_of(r)["gaps"]]
        assert sum(last - first + 1 for first, last, reason in spans if reason == "shed") == shed_after(spool, mark)
        with opened(spool) as o:
            found = overview(o.catalog, spool, [KnownTarget("t", "simspool", target.url, server=target.server)])
        assert found["balanced"]
        assert (found["records"]["lost"], found["records"]["waiting"]) == (shed_after(spool, mark), 0)
        assert found["records"]["acknowledged"] == target.marks_of[writer][0] - shed_after(spool, mark)


def test_after_a_lost_reply_the_server_is_asked_and_believed(spool: Spool) -> None:
    """The server had records whose receipt never came; then they were shed. That is no clone, and they count as acknowledged."""
    old_run(spool)
    target = Server("memory")
    target.be_away_after(1, lose=True)
    assert sync(spool, target, timeout=0.2).state == "unreachable"
    [(mark, _)] = target.marks_of.values()
    with opened(spool) as o:
        assert o.catalog.one("SELECT count(*) FROM cursors") == (0,)
        o.shed_all()
    go_on(target)
    report = sync(spool, target)
    assert (report.state, report.refused) == ("done", 0)
    found = books(spool)["records"]
    assert (found["refused"], found["waiting"]) == (0, 0)
    assert 0 < found["lost"] == shed_after(spool, mark) < shed_records(spool, spool.run_ids()[0])


def shed_after(spool: Spool, mark: int) -> int:
    folder = spool.run(spool.run_ids()[0])
    [writer] = folder.writer_ids()
    return sum(max(last - max(first, mark + 1) + 1, 0) for _, first, last in shed.segments(folder.path, writer))


@pytest.mark.parametrize("runs", [False, True])
def test_a_new_catalog_knows_all_of_it(spool: Spool, file: Path, runs: bool) -> None:
    old_run(spool, file)
    before = MemoryTarget()
    with opened(spool) as o:
        o.shed_all(runs=runs)
    assert sync(spool, before).state == "done"
    known = books(spool)["records"]
    os.unlink(catalog_path(spool))
    assert books(spool)["records"] == known
    assert sync(spool, before).sent_records == 0
    os.unlink(catalog_path(spool))
    fresh = MemoryTarget()
    assert sync(spool, fresh).state == "done"
    assert books(spool)["records"]["lost"] == known["lost"]


def test_the_journal_remembers_when_it_is_compacted(spool: Spool, file: Path) -> None:
    old_run(spool, file)
    with opened(spool) as o:
        o.shed_all(runs=True)
        o.journal.close()
        o.journal.compact()
    known = books(spool)["records"]
    os.unlink(catalog_path(spool))
    assert books(spool)["records"] == known


def test_what_was_shed_of_a_run_does_not_keep_the_rest(spool: Spool, file: Path) -> None:
    run = old_run(spool, file)
    with opened(spool) as o:
        o.shed_all()
    sync(spool, MemoryTarget())
    with opened(spool) as o:
        retention = Retention(spool, o.catalog, o.journal, 0.0)
        assert retention.eligible("memory") == [run]
        assert retention.prune(run, "memory")
    found = books(spool)["records"]
    assert found["acknowledged"] + found["lost"] == found["recorded"]


STEPS: dict[str, Callable[[pytest.MonkeyPatch, Callable[..., Any]], None]] = {
    "before the journal": lambda m, die: m.setattr(Journal, "shed", die),
    "before the run says so": lambda m, die: m.setattr(shed, "note", die),
    "before anything is deleted": lambda m, die: m.setattr(atomic, "remove", die),
    "in the middle of deleting": lambda m, die: m.setattr(atomic, "remove", dying_after(1, atomic.remove, die)),
    "before a link has its other name": lambda m, die: m.setattr(atomic, "rename", dying_after(0, atomic.rename, die)),
    "before it is noted as done": lambda m, die: m.setattr(Shedder, "_declare", die),
    "a whole run, before its journal": lambda m, die: m.setattr(Journal, "shed", dying_after(2, Journal.shed, die)),
    "a whole run, before it is deleted": lambda m, die: m.setattr(Retention, "finish", die),
    "a whole run, before it is declared": lambda m, die: m.setattr(Shedder, "_put_gap", dying_for_whole(Shedder._put_gap, die)),  # noqa: SLF001
}


def dying_after(count: int, real: Callable[..., Any], die: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that works so many times."""
    left = [count]

    def call(*arguments: Any) -> Any:
        left[0] -= 1
        return real(*arguments) if left[0] >= 0 else die()

    return call


def dying_for_whole(real: Callable[..., Any], die: Callable[..., Any]) -> Callable[..., Any]:
    """Return `_put_gap`, but for a run that goes as a whole."""

    def call(self: Shedder, span: account.Span, *arguments: Any) -> Any:
        return die() if span.segment == account.WHOLE else real(self, span, *arguments)

    return call


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_is_finished_or_has_not_begun(step: str, spool: Spool, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = old_run(spool, file)

    def die(*_: Any) -> None:
        os.kill(os.getpid(), 9)

    pid = os.fork()
    if pid == 0:
        STEPS[step](monkeypatch, die)
        Opened(spool).shed_all(runs="whole" in step)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9, "the step was never come to"
    with opened(spool) as o:
        Retention(spool, o.catalog, o.journal, 0.0).finish()
    with opened(spool) as o:
        assert o.catalog.one("SELECT count(*) FROM shed WHERE done = 0") == (0,)
        assert o.catalog.one("SELECT count(*) FROM shed_files WHERE done = 0") == (0,)
        journaled = {(s.writer, s.segment) for s in account.spans_of(o.catalog)}
        gone = {(w, n) for w in spool.run(run).writer_ids() for n, _, _ in shed.segments(spool.run(run).path, w)}
        if os.path.isdir(spool.run(run).path):
            assert gone == journaled, "what is journaled is gone, and nothing else"
            for writer, number in gone:
                assert not os.path.exists(layout.segment_path(spool.run(run).writer(writer), number, "seg"))
            left = set(os.listdir(spool.run(run).blobs))
            assert left == ({digest_of(file)} if not shed.files(spool.run(run).path) else set())
    assert {f.kind for f in scrub(spool)} <= {"shed"}
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    found = books(spool)["records"]
    assert (found["waiting"], found["acknowledged"] + found["lost"]) == (0, found["recorded"])
    with opened(spool) as o:
        assert o.freed.bytes == 0, "nothing is left to be done"


def digest_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_journal_that_cannot_be_written_deletes_nothing(spool: Spool, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = old_run(spool, file)
    before = sorted(layout.walk_files(spool.run(run).path))

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with opened(spool) as o, monkeypatch.context() as patch:
        patch.setattr(Journal, "shed", refuse)
        with pytest.raises(OSError, match="No space"):
            o.shedder.next(runs=False)
    assert sorted(layout.walk_files(spool.run(run).path)) == before


def test_spans_that_overlap_count_once() -> None:
    spans = [
        account.Span("w", 2, 400, 900, 0, {}),
        account.Span("w", 3, 901, 1000, 0, {"a": 950}),
        account.Span("w", account.WHOLE, 1, 2000, 0, {"a": 1500, "b": 100}),
    ]
    assert list(account.lost_spans(spans, ["a"])) == [("w", 400, 900), ("w", 951, 1000), ("w", 1501, 2000)]
    assert list(account.lost_spans(spans, ["b"])) == [("w", 101, 2000)]
    assert list(account.lost_spans(spans, ["a", "b"])) == [("w", 101, 2000)]
    assert list(account.lost_spans(spans, [])) == [("w", 1, 2000)]
    assert json.loads(json.dumps(list(account.bodies("r", 1.0, spans, []))))[0]["spans"][1][5] == {"a": 950}
