"""What every target must do, whatever it speaks: one suite of tests, run against a real server of each kind.

A target's tests make a `Bench` (its server as a process, faults, and a count of what the server has, taken from the server and not by the
target's code), and a class of their own:

    class TestMine(Conformance):
        @pytest.fixture(scope="class")
        @classmethod
        def bench(cls, tmp_path_factory): ...

What a bench cannot do (`supports`) is skipped, with the word in the reason.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from in_process import serve_agent

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.backoff import Backoff
from simspool.agent.sync import SyncReport
from simspool.agent.targets.build import make_target
from simspool.agent.targets.port import Target
from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Durability, Kind, Spool, Writer, blobs, ids

Number = float | int | bool
Fault = Literal[
    "kill",  # the server can be killed and restarted
    "backup",  # its state can be copied and put back
    "temporary",  # it can answer 503, or 429 with Retry-After
    "lost-reply",  # it can do what it was asked and not say so
    "poison-record",  # it can refuse single records for good
    "poison-run",  # it can refuse all of one run for good
    "small-bodies",  # it can refuse requests over a size
]
DRIVER = Path(__file__).parent / "driving.py"


@dataclass
class Counted:
    """What a server has of a run. `metrics`: name -> (step, value) in any order; `files`: name -> SHA-256 hex, or size without a digest."""

    metrics: dict[str, list[tuple[int, Any]]]
    events: list[str]
    files: dict[str, str | int]
    status: str | None = None


def _kept(value: Number) -> Any:
    return value


@dataclass(frozen=True)
class Promise:
    """How a target keeps what it is given. `value` gives the form in which a recorded value is counted there.

    `doubles`: whether a range whose end was never known (journal and catalog are gone as well) may be there twice. `metric`, `file` and
    `status` translate names; a status of None is not compared.
    """

    value: Callable[[Number], Any] = _kept
    metric: Callable[[str], str] = str
    file: Callable[[str], str] = str
    status: Callable[[str], str | None] = str
    events: bool = True
    doubles: bool = False


class Bench(Protocol):
    """One target's real server, and what can go wrong with it."""

    name: str
    supports: frozenset[Fault]
    promise: Promise

    def settings(self) -> TargetSettings:
        """Return how to reach it (through what injects faults, where something does)."""

    def has(self, run: str) -> Counted | None:
        """Return what the server has, None for a run it does not know. It heals before it looks, and starts what was killed."""

    def heal(self) -> None:
        """Take all faults away, and start the server where it was killed."""

    def kill(self) -> None:
        """SIGKILL it ("kill")."""

    def restart(self) -> None:
        """Start it again with the same state and address ("kill")."""

    def backup(self) -> Any:
        """Copy its state ("backup")."""

    def restore(self, copy: Any) -> None:
        """Put a copy in the place of its state, and start it ("backup")."""

    def refuse(self, status: int, times: int, after: float | None = None) -> None:
        """Answer the next requests with this status, and a Retry-After (s) ("temporary")."""

    def lose_replies(self, times: int) -> None:
        """Do the next writing requests, and break the connection without an answer ("lost-reply")."""

    def poison(self, writer: Writer) -> int:
        """Record what this server will never take; return how many records ("poison-record")."""

    def refuse_run(self, spool: Spool, run: str) -> None:
        """Have all of this run refused for good, from now on ("poison-run")."""

    def limit_bodies(self, size: int) -> None:
        """Refuse requests with records over so many bytes (413) ("small-bodies")."""


# ---------------------------------------------------------------------- what is recorded


@dataclass
class Recording:
    """A run in a spool, and what a target must have of it. One metric of writer n is `name`, with values that tell writers apart."""

    spool: Spool
    id: str
    writers: list[Writer]
    metrics: dict[str, list[tuple[int, Number]]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    status: str = "running"

    @classmethod
    def begin(cls, spool: Spool, name: str, writers: int = 1, **fields: Any) -> Recording:
        """Begin a run; every writer but the first attaches to it."""
        raw = ids.new_id()
        folder = spool.run(ids.to_text(raw))
        os.makedirs(folder.writers)
        made = [Writer(folder.writers, raw, durability=Durability.LAZY, rank=n or None) for n in range(writers)]
        first = {"name": name, "status": "running", "folder": "/conformance", "metadata": {"alpha": 0.5}, "tags": ["a"], **fields}
        assert made[0].record(Kind.RUN, first)
        for rank, writer in enumerate(made[1:], 1):
            assert writer.record(Kind.ATTACH, {"reason": "attach", "rank": rank})
        return cls(spool, ids.to_text(raw), made)

    def log(self, values: dict[str, Number], step: int, *, writer: int = 0, kind: int = Kind.METRICS) -> None:
        """Record one call."""
        assert self.writers[writer].metrics(values, step=step, kind=kind)
        for name, value in values.items():
            self.metrics.setdefault(name, []).append((step, value))

    def points(self, count: int, start: int = 0) -> Recording:
        """Record so many calls by each writer: a metric of all (values by writer) and one of its own."""
        for step in range(start, start + count):
            for n in range(len(self.writers)):
                self.log({"loss": step / 2 + n * 1e6, f"count{n}": step}, step, writer=n)
        return self

    def say(self, count: int, writer: int = 0) -> Recording:
        """Record events."""
        for _ in range(count):
            message = f"event {len(self.events)} of writer {writer}"
            assert self.writers[writer].record(Kind.EVENT, {"message": message})
            self.events.append(message)
        return self

    def save(self, name: str, content: bytes, writer: int = 0) -> Recording:
        """Save a file."""
        blob = blobs.put_bytes(self.spool, self.spool.run(self.id), content)
        body = {"name": name, "category": "output", "digest": blob.digest, "size": blob.size, "mime": "text/plain", "path": f"/x/{name}"}
        assert self.writers[writer].record(Kind.ARTIFACT, body)
        self.files[name] = (blob.digest, blob.size)
        return self

    def close(self, status: str = "completed") -> Recording:
        """Close all writers."""
        for writer in self.writers:
            assert writer.close({"status": status})
        self.status = status
        return self


def simple(spool: Spool, name: str, points: int = 50, writers: int = 1) -> Recording:
    """Record a whole run with a bit of everything."""
    return Recording.begin(spool, name, writers).points(points).say(3).save("result.txt", f"of {name}\n".encode() * 20).close()


def check(bench: Bench, *recordings: Recording, doubles: int = 0) -> None:
    """Hold what a server has against what was recorded; so many points may be there once too often."""
    promise = bench.promise
    for recording in recordings:
        found = bench.has(recording.id)
        assert found is not None, f"{bench.name} does not know run {recording.id}"
        over = 0
        wanted = {promise.metric(name): points for name, points in recording.metrics.items()}
        assert set(found.metrics) == set(wanted)
        for name, points in wanted.items():
            want = Counter((step, _plain(promise.value(value))) for step, value in points)
            got = Counter((step, _plain(value)) for step, value in found.metrics[name])
            assert want - got == Counter(), f"missing of {name}"
            assert set(got) == set(want), f"strange points of {name}"
            over += (got - want).total()
        if promise.events:
            want, got = Counter(recording.events), Counter(found.events)
            assert want - got == Counter(), "missing events"
            assert set(got) == set(want), "strange events"
            over += (got - want).total()
        assert over <= doubles, f"{over} points and events are there twice"
        files = {promise.file(name): digest_size for name, digest_size in recording.files.items()}
        assert set(found.files) == set(files)
        for name, (digest, size) in files.items():
            assert found.files[name] == (digest if isinstance(found.files[name], str) else size), name
        status = promise.status(recording.status)
        assert status is None or found.status == status


def _plain(value: Any) -> tuple[str, Any]:
    """Return a value that is equal only to the same number: True is 1 is 1.0 here, as it is told by nobody."""
    return ("nan", 0) if isinstance(value, float) and math.isnan(value) else ("", value)


# ---------------------------------------------------------------------- agents


def sync(
    spool: Spool, target: TargetSettings, *, timeout: float = 60.0, make: Callable[[TargetSettings], Target] = make_target
) -> SyncReport:
    """Do what `agent sync` does, with one target and short pauses."""

    async def once() -> SyncReport:
        agent = Agent(AgentConfig(spool, target.address), target=make(target), backoff=Backoff(lambda: 0.002))
        async with agent, asyncio.timeout(timeout + 30):
            return await agent.sync(timeout=timeout)

    return asyncio.run(once())


def remarked(spool: Spool, what: str) -> int:
    """Return how many records or points the agent's catalog has remarked so."""
    db = sqlite3.connect(f"file:{catalog_path(spool)}?mode=ro", uri=True)
    try:
        [[count]] = db.execute("SELECT coalesce(sum(count), 0) FROM remarks WHERE what = ?", (what,))
        return int(count)
    finally:
        db.close()


class Driven:
    """An agent in a process of its own that does one sync in small requests and says what it does, to be killed in the middle."""

    def __init__(self, spool: Spool, target: TargetSettings) -> None:
        told = json.dumps({**dataclasses.asdict(target), "options": dict(target.options)})
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), spool.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert self.process.stdin is not None
        self.process.stdin.write(told)
        self.process.stdin.close()

    def lines(self) -> Iterator[str]:
        """What it says: `connected`, `send`, `sent`, `put`, `stored`, ... and at last `done` and its state."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.strip()

    def kill(self) -> None:
        """SIGKILL it, where it still runs."""
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Wait for it."""
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


# ---------------------------------------------------------------------- the suite


class Conformance:
    """The suite. A subclass has a fixture `bench`; `spool` is an empty spool."""

    @pytest.fixture(autouse=True)
    def _healthy(self, bench: Bench) -> Iterator[None]:
        bench.heal()
        yield
        bench.heal()

    @staticmethod
    def need(bench: Bench, *faults: Fault) -> None:
        """Skip what a bench cannot do."""
        missing = [f for f in faults if f not in bench.supports]
        if missing:
            pytest.skip(f"{bench.name} has no {', '.join(missing)}")

    def test_all_kinds_arrive_and_a_second_sync_sends_nothing(self, bench: Bench, spool: Spool) -> None:
        first = Recording.begin(spool, "all kinds", writers=3, description="words")
        first.points(40)
        for step, value in enumerate([0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e-300, 3.0]):
            first.log({"floats": value}, step)
        for step, value in enumerate([0, -1, 2**53, 12345678901]):
            first.log({"ints": value}, step)
        first.log({"flag": True}, 0)
        first.log({"flag": False}, 1)
        for step, value in enumerate([math.nan, math.inf, -math.inf, 2.0]):
            first.log({"odd": value}, step)
        first.log({"resources/cpu.usage.percentage": 12.5}, 0, kind=Kind.RESOURCES)
        assert first.writers[0].record(Kind.METRICS_JSON, {"values": {"as_json": 0.25}, "step": 7})
        first.metrics["as_json"] = [(7, 0.25)]
        first.say(4).say(3, writer=1)
        first.save("a.txt", b"some bytes\n" * 500).save("b.txt", b"some bytes\n" * 500, writer=1).save("empty", b"")
        assert first.writers[0].record(Kind.METADATA, {"set": {"beta": 2, "text": "two\nlines"}})
        assert first.writers[1].record(Kind.TAGS, {"op": "add", "tags": ["b"]})
        assert first.writers[0].record(Kind.FOLDER, {"path": "/conformance", "description": "of tests"})
        alert = {"id": ids.to_text(ids.new_id()), "name": "too much", "source": "user", "notification": "none", "abort": False, "alert": {}}
        assert first.writers[0].record(Kind.ALERT, alert)
        assert first.writers[0].record(Kind.ALERT_STATE, {"id": alert["id"], "alert": "too much", "state": "critical"})
        first.close()
        others = [simple(spool, f"other {n}", writers=2) for n in range(3)]
        others.append(Recording.begin(spool, "failed").points(3).close("failed"))
        report = sync(spool, bench.settings())
        assert (report.state, report.records_left, report.files_left, report.refused) == ("done", 0, 0, 0), report.problems
        check(bench, first, *others)
        again = sync(spool, bench.settings())
        assert (again.state, again.sent_records, again.sent_bytes, again.sent_files) == ("done", 0, 0, 0)
        check(bench, first, *others)

    def test_a_run_is_sent_while_it_runs_and_ends_when_it_ends(self, bench: Bench, spool: Spool) -> None:
        run = Recording.begin(spool, "live", writers=2).points(10).say(1)
        assert sync(spool, bench.settings()).state == "done"
        check(bench, run)
        run.points(10, start=10).save("late.txt", b"late")
        assert sync(spool, bench.settings()).state == "done"
        check(bench, run)
        run.close("terminated")
        assert sync(spool, bench.settings()).state == "done"
        check(bench, run)

    def test_a_served_run_arrives_as_it_is_recorded(self, bench: Bench, spool: Spool) -> None:
        settings = bench.settings()
        run = Recording.begin(spool, "served").points(5)

        async def story(agent: Agent) -> None:
            for part in range(1, 4):
                run.points(5, start=5 * part).say(1)
                agent_has = run.writers[0].sequence
                assert agent.ingest_loop is not None
                agent.ingest_loop.rung(b"")
                while _mark(agent, run.writers[0].id_text) < agent_has:
                    await asyncio.sleep(0.05)

        config = AgentConfig(spool, settings.address)
        serve_agent(lambda: Agent(config, target=make_target(settings), backoff=Backoff(lambda: 0.002)), story, seconds=60)
        check(bench, run)
        run.close()
        assert sync(spool, settings).state == "done"
        check(bench, run)

    def test_a_server_that_is_down_loses_nothing(self, bench: Bench, spool: Spool) -> None:
        self.need(bench, "kill")
        run = simple(spool, "down")
        settings = bench.settings()
        bench.kill()
        report = sync(spool, settings, timeout=1.0)
        assert (report.state, report.records_left) == ("unreachable", report.records)
        bench.restart()
        assert sync(spool, settings).state == "done"
        check(bench, run)

    @pytest.mark.parametrize(("status", "after"), [(503, None), (429, 0.05)])
    def test_what_a_server_refuses_for_now_is_sent_later(self, bench: Bench, spool: Spool, status: int, after: float | None) -> None:
        self.need(bench, "temporary")
        run = simple(spool, f"answered {status}", writers=2)
        bench.refuse(status, 3, after)
        assert sync(spool, bench.settings()).state == "done"
        check(bench, run)

    def test_a_reply_that_is_lost_changes_nothing(self, bench: Bench, spool: Spool) -> None:
        self.need(bench, "lost-reply")
        runs = [simple(spool, f"lost reply {n}", writers=2) for n in range(2)]
        bench.lose_replies(3)
        assert sync(spool, bench.settings()).state == "done"
        check(bench, *runs, doubles=remarked(spool, "possibly double"))

    def test_without_journal_and_catalog_nothing_is_lost_or_unaccounted(self, bench: Bench, spool: Spool) -> None:
        runs = [simple(spool, f"again {n}", writers=2) for n in range(2)]
        assert sync(spool, bench.settings()).state == "done"
        check(bench, *runs)
        shutil.rmtree(os.path.join(spool.agent, "w"))
        Path(catalog_path(spool)).unlink()
        for name in ("-wal", "-shm"):
            Path(catalog_path(spool) + name).unlink(missing_ok=True)
        assert sync(spool, bench.settings()).state == "done"
        every = sum(len(p) for run in runs for p in run.metrics.values()) + sum(len(run.events) for run in runs)
        check(bench, *runs, doubles=every if bench.promise.doubles else remarked(spool, "possibly double"))

    def test_a_poison_record_is_named_and_the_rest_goes_on(self, bench: Bench, spool: Spool) -> None:
        self.need(bench, "poison-record")
        run = Recording.begin(spool, "poisoned").points(30).say(2)
        count = bench.poison(run.writers[0])
        run.points(30, start=30).say(2).close()
        other = simple(spool, "beside the poison")
        report = sync(spool, bench.settings())
        assert (report.state, report.refused, report.records_left) == ("done", count, 0), report.problems
        assert int(report.exit_code) == 4
        check(bench, run, other)

    def test_one_run_that_is_refused_does_not_stop_the_others(self, bench: Bench, spool: Spool) -> None:
        self.need(bench, "poison-run")
        bad = Recording.begin(spool, "refused").points(10)
        assert sync(spool, bench.settings()).state == "done"
        bench.refuse_run(spool, bad.id)
        bad.points(10, start=10).close()
        others = [simple(spool, f"beside it {n}") for n in range(3)]
        report = sync(spool, bench.settings())
        assert (report.state, report.records_left, report.files_left) == ("done", 0, 0), report.problems
        assert report.refused > 0
        check(bench, *others)

    def test_small_bodies_are_found_and_kept_to(self, bench: Bench, spool: Spool) -> None:
        self.need(bench, "small-bodies")
        runs = [Recording.begin(spool, f"cut {n}", writers=2).points(2000).close() for n in range(2)]
        bench.limit_bodies(60_000)
        assert sync(spool, bench.settings()).state == "done"
        check(bench, *runs)

    def test_a_large_file_arrives_whole(self, bench: Bench, spool: Spool) -> None:
        content = random.Random(5).randbytes(24 << 20)
        run = Recording.begin(spool, "large").points(20).save("large.bin", content).save("small.bin", b"small").close()
        assert run.files["large.bin"][0] == hashlib.sha256(content).hexdigest()
        assert sync(spool, bench.settings()).state == "done"
        check(bench, run)

    def test_a_server_restored_from_an_old_backup_is_refilled(self, bench: Bench, spool: Spool) -> None:
        self.need(bench, "backup")
        old, grown = simple(spool, "in the backup"), Recording.begin(spool, "half in it", writers=2).points(20).say(2)
        assert sync(spool, bench.settings()).state == "done"
        copy = bench.backup()
        grown.points(20, start=20).say(2).save("new.txt", b"new").close()
        new = simple(spool, "not in it", writers=2)
        assert sync(spool, bench.settings()).state == "done"
        check(bench, old, grown, new)
        bench.restore(copy)
        assert bench.has(new.id) is None
        later = simple(spool, "after it")
        assert sync(spool, bench.settings()).state == "done"
        check(bench, old, grown, new, later, doubles=remarked(spool, "possibly double"))

    def test_killed_at_any_moment_nothing_is_lost_or_sent_twice(self, bench: Bench, spool: Spool) -> None:
        """The agent is killed behind a random thing that it does, the server now and then as well."""
        rng = random.Random(20)
        runs = [Recording.begin(spool, f"killed {n}", writers=2).points(600).say(20) for n in range(3)]
        for n, run in enumerate(runs):
            for i in range(4):
                run.save(f"{i}.bin", rng.randbytes(50_000))
            run.close("completed" if n else "failed")
        settings = bench.settings()
        killed = 0
        for turn in range(5):
            driven, last = Driven(spool, settings), rng.randint(2, 14)
            for number, line in enumerate(driven.lines()):
                if line.startswith("done"):
                    break
                if number == last:
                    if "kill" in bench.supports and turn % 2:
                        bench.kill()
                    driven.kill()
                    killed += 1
                    break
            driven.end()
            if "kill" in bench.supports and turn % 2:
                bench.restart()
        assert killed >= 2
        assert sync(spool, settings).state == "done"
        check(bench, *runs, doubles=remarked(spool, "possibly double"))

    def test_two_targets_at_once_and_one_added_later(self, bench: Bench, spool: Spool, tmp_path: Path) -> None:
        """Each has cursors of its own; what was recorded before a target was there is sent to it as well."""
        from directory_bench import DirectoryBench

        early = simple(spool, "early", writers=2)
        beside = DirectoryBench(tmp_path / "beside")
        present = [bench.settings()]
        run = Recording.begin(spool, "both", writers=2).points(30)

        async def story(agent: Agent) -> None:
            assert (await agent.sync(timeout=60)).state == "done"
            present.append(dataclasses.replace(beside.settings(), name="beside"))
            await agent.reload_targets()
            assert (await agent.sync(timeout=60)).state == "done"
            run.points(30, start=30).say(2).save("both.txt", b"both").close()
            assert (await agent.sync(timeout=60)).state == "done"

        serve_agent(lambda: Agent(AgentConfig(spool, load=lambda: list(present))), story, seconds=90)
        check(bench, early, run)
        check(beside, early, run)


def _mark(agent: Agent, writer: str) -> int:
    row = agent.catalog.one("SELECT max(mark) FROM cursors WHERE writer = ?", (writer,))
    return int(row[0] or 0) if row else 0
