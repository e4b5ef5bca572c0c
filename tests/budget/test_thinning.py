"""Thinning in a script: which calls are taken, what is counted, and that all of it adds up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simspool.sdk import Run
from simspool.sdk import pressure as thinning
from simspool.sdk.pressure import KEEP, Thinning, watched_by
from simspool.spool import Durability, InvalidRecord, Kind, Spool, Tail, Writer, ids, layout, pressure
from simspool.spool.frames import MetricBatch, Record
from simspool.spool.pressure import FILES, METRICS, SAMPLES, Pressure
from simspool.spool.reader import read_drop_counts

Point = tuple[int, dict[str, Any]]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is a hasty one: the tests say how many, not how fast."""
    monkeypatch.setattr(thinning, "QUIET_NS", 1 << 62)


def points(folder: str, run: str) -> Iterator[Point]:
    """Yield (step, values) of what a writer has recorded."""
    with Tail(folder, run) as tail:
        for chunk in tail.read(dead=True):
            for item in chunk.items:
                if isinstance(item, MetricBatch) and item.kind == Kind.METRICS:
                    yield from ((row[4], item.values(row)) for row in item.rows)
                elif isinstance(item, Record) and item.kind == Kind.METRICS_JSON and item.body is not None:
                    yield item.body["step"], item.body["values"]


def writer_with(tmp_path: Path, level: int, watched: set[str] | None = None) -> tuple[Writer, Thinning, str]:
    raw = ids.new_id()
    writer = Writer(str(tmp_path / "w"), raw, durability=Durability.LAZY)
    gate = writer.gate = Thinning(level, lambda: watched or set(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    return writer, gate, ids.to_text(raw)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("level", [METRICS, FILES])
def test_the_first_and_one_of_so_many_are_taken_and_the_last_at_the_end(level: int, tmp_path: Path) -> None:
    writer, gate, run = writer_with(tmp_path, level)
    n = KEEP[level] * 3 + 4
    kept = [writer.metrics({"a": i / 2, "b": i}) for i in range(n)]
    taken = [i for i, k in enumerate(kept) if k]
    assert taken[0] == 0
    assert taken[1:] == [KEEP[level] * k for k in (1, 2, 3)]
    assert writer.drops == {"budget-thinned": n - len(taken)}
    assert gate.restate(writer) == 1
    writer.close({"status": None})
    found = list(points(writer.folder, run))
    assert found == [(i, {"a": i / 2, "b": i}) for i in [*taken, n - 1]], "each with the step that its call had"


@pytest.mark.usefixtures("hasty")
def test_calls_with_other_metrics_are_counted_by_themselves(tmp_path: Path) -> None:
    writer, _, _ = writer_with(tmp_path, METRICS)
    for i in range(30):
        assert writer.metrics({"train": i}) == (i % 10 == 0)
        assert writer.metrics({"val": i}) == (i % 10 == 0)
    writer.close()


def test_whoever_logs_slowly_is_not_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "QUIET_NS", 0)
    writer, _, _ = writer_with(tmp_path, FILES)
    assert all(writer.metrics({"a": i}) for i in range(50))
    assert writer.drops == {}
    writer.close()


@pytest.mark.usefixtures("hasty")
def test_what_a_rule_looks_at_is_not_thinned(tmp_path: Path) -> None:
    watched = {"loss*", "resources/memory"}
    writer, gate, _ = writer_with(tmp_path, FILES, watched)
    assert all(writer.metrics({"loss/train": i, "x": i}) for i in range(50))
    assert writer.metrics({"resources/memory": 1.0}, kind=Kind.RESOURCES)
    assert not writer.metrics({"resources/cpu": 1.0}, kind=Kind.RESOURCES)
    watched.clear()
    gate.refresh()
    assert not all(writer.metrics({"loss/train": i, "x": i}) for i in range(50))
    writer.close()
    rule = {"rule": "is above", "metric": "loss"}
    assert watched_by([{"alert": rule}, {"alert": {"rule": "is not finite", "metric": "*"}}, {"alert": {"pattern": "x"}}, {}]) == {"loss"}


@pytest.mark.usefixtures("hasty")
def test_the_first_nan_is_taken_and_the_first_number_after_it(tmp_path: Path) -> None:
    writer, _, _ = writer_with(tmp_path, FILES)
    nan = float("nan")
    values = [1.0, 1.0, nan, nan, nan, 2.0, 2.0, float("inf")]
    assert [writer.metrics({"a": v}) for v in values] == [True, False, True, False, False, True, False, True]
    writer.close()


@pytest.mark.usefixtures("hasty")
def test_a_mistake_is_a_mistake_also_when_it_is_thinned(tmp_path: Path) -> None:
    writer, _, _ = writer_with(tmp_path, METRICS)
    assert writer.metrics({"a": 1.0})
    with pytest.raises(InvalidRecord):
        writer.metrics({"a": "much"})
    with pytest.raises(InvalidRecord):
        writer.metrics({"a": 1.0}, step=-1)
    with pytest.raises(InvalidRecord):
        writer.metrics({})
    assert writer.drops == {}
    writer.close()


def test_samples_are_refused_from_the_first_level_on(tmp_path: Path) -> None:
    writer, _, _ = writer_with(tmp_path, SAMPLES)
    assert writer.metrics({"a": 1.0})
    assert not writer.metrics({"resources/cpu": 1.0}, kind=Kind.RESOURCES)
    assert writer.drops == {"budget-sample": 1}
    assert writer.step == 1, "samples are no steps"
    writer.close()


CALL = st.tuples(st.sampled_from("abc"), st.sampled_from([None, 7]), st.sampled_from([0, 1, 2, 3]), st.booleans())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALL, max_size=120), killed=st.booleans())
@pytest.mark.usefixtures("hasty")
def test_everything_adds_up(calls: list[tuple[str, int | None, int, bool]], killed: bool, tmp_path: Path) -> None:
    """I4: produced = recorded - restated + dropped, whatever the levels were, and whether it was closed or not."""
    writer, gate, run = writer_with(tmp_path, 0)
    true = samples = 0
    for name, step, level, is_sample in calls:
        gate.level = level
        kind = Kind.RESOURCES if is_sample else Kind.METRICS
        kept = writer.metrics({name: 1.0}, step, kind=kind)
        true += kept
        samples += is_sample
    assert writer.step == len(calls) - samples, "each call is a step, taken or not"
    restated = 0 if killed else gate.restate(writer)
    if not killed:
        writer.close({"status": None, "restated": restated})
    in_memory = writer.drops
    on_disk = read_drop_counts(writer.folder) if os.path.isdir(writer.folder) else {}
    assert on_disk == (in_memory if layout.segments(writer.folder) else {})
    recorded = 0
    if os.path.isdir(writer.folder):
        with Tail(writer.folder, run) as tail:
            for chunk in tail.read(dead=True):
                recorded += sum(len(i.rows) if isinstance(i, MetricBatch) else i.kind != Kind.CLOSE for i in chunk.items)
    assert recorded - restated == true
    assert len(calls) == recorded - restated + sum(in_memory.values())
    assert restated <= len({c[0] for c in calls})


def test_counts_survive_a_kill(tmp_path: Path, spool: Spool) -> None:
    body = """
import os, time
from simspool.sdk import Run
from simspool.spool import pressure
run = Run(mode="offline", agent="off")
run.init("killed")
run.config(disable_resources_metrics=True)
pressure.publish(os.environ["SIMSPOOL_DIR"], pressure.Pressure(3, 1.0, "there is no room", 1.0))
deadline = time.monotonic() + 30
while run._recording.level < 3 and time.monotonic() < deadline:
    run._recording.tend()
true = sum(run.log_metrics({"a": float(i)}) for i in range(5000))
assert not run.save_object([1], "output", "o")
assert run.log_event("an event is always taken") and run.update_metadata({"a": 1}) and run.update_tags(["t"]) and run.set_status("failed")
print(true, run.drops["budget-thinned"], run.id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    true, thinned, run = done.stdout.split()
    assert int(true) + int(thinned) == 5000
    assert int(thinned) > 4000
    [writer] = spool.run(run).writer_ids()
    folder = spool.run(run).writer(writer)
    assert read_drop_counts(folder) == {"budget": 1, "budget-thinned": int(thinned)}
    assert len(list(points(folder, run))) == int(true)
    assert done.stderr.count("metrics are thinned") == 2, "once for the metrics, once for the first file"
    assert "there is no room" in done.stderr
    assert "not recording into" not in done.stderr


def test_a_run_says_at_its_end_what_it_left_out(spool: Spool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "QUIET_NS", 1 << 62)
    run = Run(mode="offline", agent="off")
    run.init("r")
    run.config(disable_resources_metrics=True)
    pressure.publish(spool.path, Pressure(METRICS, 0.9, "it is full", 1.0))
    assert run._recording is not None
    run._recording.tend()
    assert sum(run.log_metrics({"loss": float(i)}) for i in range(95)) == 10
    run.create_metric_threshold_alert("low", "accuracy", 0.1, "is below")
    run._recording.tend()
    assert all(run.log_metrics({"accuracy": float(i)}) for i in range(50))
    assert run.close()
    assert "85 records of run" in capsys.readouterr().err
    [writer] = spool.run(run.id or "").writer_ids()
    with Tail(spool.run(run.id or "").writer(writer), run.id or "") as tail:
        last = [item for chunk in tail.read(dead=True) for item in chunk.items][-1]
    assert isinstance(last, Record)
    assert last.body is not None
    assert last.body["restated"] == 1
    assert last.body["drops"] == {"budget-thinned": 85}


def test_a_fork_does_not_record_what_its_parent_holds(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "QUIET_NS", 1 << 62)
    run = Run(mode="offline", agent="off")
    run.init("r")
    run.config(disable_resources_metrics=True)
    pressure.publish(spool.path, Pressure(METRICS, 0.9, "it is full", 1.0))
    assert run._recording is not None
    run._recording.tend()
    for i in range(5):
        run.log_metrics({"loss": float(i)})
    pid = os.fork()
    if pid == 0:
        run.log_event("from the child")
        run.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    run.close()
    own, child = (list(points(spool.run(run.id or "").writer(w), run.id or "")) for w in spool.run(run.id or "").writer_ids())
    assert [step for step, _ in own] == [0, 4]
    assert child == []
