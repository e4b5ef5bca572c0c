"""F3, F4: power cuts, of a real file system on a loop device, and of a modelled one that keeps only what was synced."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from checker import check_server, read_run
from power_model import Log, cut
from trials import Context, NotHere, Part, Stage, part

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Cursor, Journal
from simspool.agent.retention import Retention
from simspool.spool import Durability, Kind, RunFolder, Spool, Writer, blobs, ids, layout, open_spool, segment
from simspool.spool.frames import MetricBatch
from simspool.spool.reader import Tail


def _campaign() -> Any:
    import powercut_campaign

    reason = powercut_campaign.usable()
    if reason:
        raise NotHere(reason)
    return powercut_campaign


@part("F3", "power cuts on ext4 while `each` records")
def cuts_each(c: Context, out: Part) -> None:
    """Several cuts of one script's disk: what had returned True when the copy began must be on it."""
    powercut = _campaign()
    choice, left = c.random("cuts"), c.pick(3, 40, 1000)
    while left > 0:
        mapped = choice.random() < 0.5
        with powercut.Disk(c.room(), 48) as disk:
            board = mmap.mmap(-1, 24)
            pid = os.fork()
            if pid == 0:
                try:
                    powercut.script(str(disk.mount / "spool"), board, Durability.EACH, mapped, 1 << 40, True)
                finally:
                    os._exit(1)
            try:
                for n in range(min(left, 20)):
                    time.sleep(choice.uniform(0.02, 0.2))
                    promised = struct.unpack("<q", board[:8])[0]
                    at = disk.cut(f"cut{n}")
                    out.tried(_judge(powercut, at / "spool", promised), f"cut {out.n}, mapped {mapped}")
                    out.add(calls=promised if n == 0 else 0)
                    disk.drop(at)
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            left -= 20
        shutil.rmtree(disk.folder, ignore_errors=True)


def _judge(powercut: Any, spool: Path, promised: int) -> list[str]:
    if not (spool / "SPOOL").exists() or not any((spool / "runs").glob("*/w")):
        return [f"I1: no spool, and {promised} calls had returned True"] if promised else []
    counts = powercut.check(spool, promised)
    kinds = (("lost", "I1"), ("damaged", "I1"), ("bad_blobs", "I5"))
    return [f"{invariant}: {counts[name]} {name} of {promised}" for name, invariant in kinds if counts[name]]


@part("F3", "power cuts on ext4 after a silence of `interval`, with and without an agent")
def cuts_interval(c: Context, out: Part) -> None:
    powercut = _campaign()
    for beside in (False, True):
        figures = powercut.campaign(c.pick(1, 2, 10) * (1 if beside else 2), c.seed, 10.0 if beside else 5.0, str(c.room()), beside=beside)
        for level in ("each", "interval"):
            counts = figures[level]
            out.n += counts.get("cuts", 0)
            out.violations += [f"I1: {counts[k]} {k}" for k in ("lost", "damaged", "bad_blobs") if counts.get(k)]


@part("F3", "power cuts under an agent that drains, the script without durability")
def cuts_draining(c: Context, out: Part) -> None:
    """`lazy` scripts sync nothing: what the server has, the agent must have synced before it sent it."""
    powercut = _campaign()
    choice = c.random("draining cuts")
    for _ in range(c.pick(1, 4, 40)):
        room = c.room()
        with powercut.Disk(room, 96) as disk:
            stage = Stage(room, c.server, spool=disk.mount / "spool", state=disk.mount / "state", env={"SIMSPOOL_DURABILITY": "lazy"})
            agent = stage.agent()
            scripts = [stage.script(calls=100_000, rate=choice.choice([200, 2000]), files=2) for _ in range(2)]
            time.sleep(choice.uniform(1.5, 4.0))
            for script in scripts:
                script.kill()
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
            at = disk.cut("after")
            found = _after_cut(stage, at, room)
            out.tried(found)
            disk.drop(at)
        shutil.rmtree(room, ignore_errors=True)


def _after_cut(stage: Stage, at: Path, room: Path) -> list[str]:
    """On a copy of the disk that was cut off: what the server has is the beginning of what is left, and the drain goes on from there."""
    copy = room / "copy"
    shutil.copytree(at / "spool", copy / "spool") if (at / "spool").exists() else copy.mkdir()
    if (at / "state").exists():
        shutil.copytree(at / "state", copy / "state")
    if not (copy / "spool" / "SPOOL").exists():
        return []
    saids = [s.said for s in stage.scripts]
    out = check_server(stage.server, copy / "spool", saids, whole=False)  # type: ignore[arg-type]
    later = Stage(copy, stage.server)
    for _ in range(2):
        done = later.sync()
        if done.code != 0:
            out.append(f"I8: the sync after the cut ended with {done.code}: {done.output[-300:]}{done.errors[-300:]}")
    if done.report.get("sent_records"):
        out.append("I8: a second sync after the cut sent something")
    return out + check_server(stage.server, copy / "spool", saids, whole=False)  # type: ignore[arg-type]


@part("F3", "a power cut takes what the agent had taken in and not sent, its state lies on another disk")
def ahead_of_the_disk(c: Context, out: Part) -> None:
    """The catalog is fsynced, the records of an `interval` script are not yet: after the cut it knows more than the disk has."""
    for number in range(c.pick(1, 4, 40)):
        choice = c.random(f"ahead {number}")
        with Stage(c.room(), c.server) as stage:
            script = stage.script(calls=choice.randrange(300, 3000), linger=600)
            script.wait_for(300)
            stage.sync(env={"SIMSPOOL_URL": "http://127.0.0.1:9"})  # taken in; nothing can be sent
            script.kill()
            said = script.said
            [writer] = layout.list_writers(str(stage.spool / "runs" / said.run / "w"))[:1]
            path = Path(layout.segments(str(stage.spool / "runs" / said.run / "w" / writer))[0].path)
            data = path.read_bytes()
            # from some page on, nothing had reached the disk: the file is shorter, or zeros
            at = choice.randrange(2, len(data.rstrip(b"\0")) // 4096 + 1) * 4096
            path.write_bytes(data[:at] + (bytes(len(data) - at) if choice.random() < 0.5 else b""))
            left = read_run(open_spool(stage.spool), said.run)
            wrong = []
            done = stage.sync()
            if done.code != 0:
                wrong.append(f"I8: the sync after the cut ended with {done.code}: {done.report.get('problems')}")
            there = len(c.server.points(said.run, "n")) if c.server.get(f"/runs/{said.run}") else 0
            if there != len(left.metrics):
                wrong.append(f"I1: {len(left.metrics)} records survived the cut, {there} of them arrive")
            out.tried(wrong)


# ---------------------------------------------------------------------- F4


RUN = ids.to_text(bytes(range(16)))


@contextmanager
def small_segments() -> Iterator[None]:
    """Segments of a page or two, so that a short history rotates."""
    before = segment.SEGMENT_MAX, segment.FIRST_ALLOCATION, segment.NEXT_ALLOCATION
    segment.SEGMENT_MAX, segment.FIRST_ALLOCATION, segment.NEXT_ALLOCATION = 8192, 4096, 4096
    numbers = itertools.count(1 << 80)
    try:
        # ids in order, as those of different milliseconds are; and the same ones for the same seed
        with mock.patch.object(ids, "new_id", side_effect=lambda: next(numbers).to_bytes(16, "big")):
            yield
    finally:
        segment.SEGMENT_MAX, segment.FIRST_ALLOCATION, segment.NEXT_ALLOCATION = before


def _writing(choice: random.Random, log: Log, root: Path) -> dict[str, dict[int, Any]]:
    """A script's life: records, upkeep, blobs, perhaps a close. Returns what was recorded, by writer and sequence."""
    spool = open_spool(root / "spool", create=True)
    log.promise("spool")
    run, recorded = spool.run(RUN), {}
    for _ in range(choice.choice([1, 1, 2])):
        level = choice.choice(list(Durability))
        writer = Writer(run.writers, ids.from_text(RUN), mapped=choice.random() < 0.5, durability=level)
        mine = recorded[writer.id_text] = {}

        def kept(upto: int, writer: Writer = writer) -> None:
            log.promise("records", writer.id_text, upto)

        for n in range(choice.randrange(1, 25)):
            what = choice.choice(["metrics"] * 5 + ["event"] * 3 + ["maintain", "sync", "blob"])
            if what == "metrics":
                values = {choice.choice("abc"): n * 0.5, "n": n}
                if writer.metrics(values):
                    mine[writer.sequence] = values
            elif what == "event":
                body = {"message": "x" * choice.choice([3, 300, 3000]), "n": n}
                if writer.record(Kind.EVENT, body):
                    mine[writer.sequence] = body
            elif what == "maintain":
                writer.maintain()
                if level is Durability.INTERVAL:
                    kept(writer.sequence)
            elif what == "sync":
                if writer.sync():
                    kept(writer.sequence)
            else:
                data = choice.randbytes(choice.choice([10, 5000]))
                blob = blobs.put_bytes(spool, run, data)
                if choice.random() < 0.7:
                    assert blobs.publish(spool, run, [blob.digest]) == []
                    log.promise("blob", blob.digest)
            if level is Durability.EACH:
                kept(writer.sequence)
        if choice.random() < 0.6:
            if writer.close({"status": "completed"}):
                mine[writer.sequence] = None
                kept(writer.sequence)
        else:
            # killed: nothing more is done for it; its files are let go of without a word
            for current in [writer._stream.now, *writer._stream.retired]:
                if current.file is not None:
                    current.file.close()
            if writer._stream.prepared is not None:
                writer._stream.prepared.close()
    return recorded


def _judge_writing(root: Path, promises: list[tuple[Any, ...]], recorded: dict[str, dict[int, Any]]) -> list[str]:
    try:
        spool = open_spool(root / "spool")
    except Exception as error:
        return [f"I1: the spool was made and cannot be opened: {error}"] if ("spool",) in promises else []
    out: list[str] = []
    run = spool.run(RUN)
    least: dict[str, int] = {}
    for promise in promises:
        if promise[0] == "records":
            least[promise[1]] = max(least.get(promise[1], 0), promise[2])
        elif promise[0] == "blob":
            path = blobs.path_of(spool, run, promise[1])
            if path is None or _bad(path, promise[1]):
                out.append(f"I5: a blob that was published is {'gone' if path is None else 'damaged'}")
    for writer, mine in recorded.items():
        found = _read(run, writer)
        if found != _read(run, writer):
            out.append("I8: the second reading differs from the first")
        invented = [seq for seq, value in found.items() if seq not in mine or (mine[seq] is not None and value != mine[seq])]
        if invented:
            out.append(f"I2: records that nobody wrote, or other ones: {invented[:5]}")
        lost = [seq for seq in range(1, least.get(writer, 0) + 1) if seq not in found]
        if lost:
            out.append(f"I1: {len(lost)} of {least[writer]} durable records are lost: {lost[:5]}")
    digests = [name for name in os.listdir(run.blobs) if len(name) == 64] if os.path.isdir(run.blobs) else []
    blobs.publish(spool, run, digests)
    out += [f"I5: {p.name} in the pool has other bytes" for p in Path(spool.pool).rglob("*") if p.is_file() and _bad(str(p), p.name)]
    return out


def _bad(path: str, digest: str) -> bool:
    try:
        blobs.verify(path, digest)
    except Exception:
        return True
    return False


def _read(run: RunFolder, writer: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    with Tail(run.writer(writer), RUN) as tail:
        for chunk in tail.read(dead=True):
            for item in chunk.items:
                if isinstance(item, MetricBatch):
                    found.update({row[1]: item.values(row) for row in item.rows})
                else:
                    found[item.seq] = item.body
    return found


class _Eligible(Retention):
    """Every run is over its grace: what a prune leaves is what is looked at."""

    def eligible(self, *servers: str) -> list[str]:
        return self._spool.run_ids()


def _agent_life(choice: random.Random, log: Log, root: Path) -> dict[str, dict[int, Any]]:
    """An agent's life: intents, receipts, rewinds, compaction, and a run that is pruned."""
    spool = open_spool(root / "spool", create=True)
    catalog = Catalog(None)
    journal = Journal(spool, catalog)
    mark = 0
    with catalog.transaction() as db:
        columns = 'id, run, segment, "offset", sequence, chain, complete, closed'
        db.execute(f"INSERT INTO writers({columns}) VALUES (?,?,1,0,1,0,1,1)", (RUN, RUN))
    writer = Writer(spool.run(RUN).writers, ids.from_text(RUN), durability=Durability.EACH)
    writer.metrics({"n": 1})
    writer.close({"status": "completed"})
    log.promise("run")
    for n in range(choice.randrange(1, 12)):
        what = choice.choice(["receipt"] * 4 + ["intent", "rewind", "compact", "again"])
        if what == "receipt":
            mark += choice.randrange(1, 50)
            log.promise("attempt", mark)
            journal.receive("server", float(n), [Cursor("w", mark, mark * 7, 1, mark)], blobs=[f"{n:064x}"])
            log.promise("cursor", mark)
            log.promise("upload", f"{n:064x}")
        elif what == "intent":
            journal.intend("server", [("w", mark + 1, mark + 9)])
        elif what == "rewind":
            mark = choice.randrange(mark + 1)
            log.promise("attempt", mark)
            journal.rewind("server", Cursor("w", mark, mark * 7, 1, mark))
            log.promise("cursor", mark)
        elif what == "compact":
            journal.compact()
        else:
            journal.close()
            journal = Journal(spool, catalog)
    if choice.random() < 0.7 and _Eligible(spool, catalog, journal, 0.0).prune(RUN, "server") is not None:
        log.promise("pruned")
    if choice.random() < 0.5:
        journal.close()
    else:
        log.afterwards.append(journal.close)  # its descriptors: what it writes then is not recorded
    log.afterwards.append(catalog.close)
    return {}


def _judge_agent(root: Path, promises: list[tuple[Any, ...]], _: dict[str, dict[int, Any]]) -> list[str]:
    try:
        spool = open_spool(root / "spool")
    except Exception as error:
        return [f"I1: the spool cannot be opened: {error}"] if promises else []
    kinds = {p[0] for p in promises}
    rows = []
    for _again in range(2):  # recovered twice
        catalog = Catalog(None)
        journal = Journal(spool, catalog)
        retention = Retention(spool, catalog, journal, 0.0)
        retention.finish()
        cursor = catalog.one("SELECT mark FROM cursors WHERE server = 'server' AND writer = 'w'")
        uploads = {d for (d,) in catalog.rows("SELECT digest FROM uploads")}
        pruned = catalog.one("SELECT 1 FROM pruned") is not None
        whole = os.path.isdir(spool.run(RUN).path) and list(_read(spool.run(RUN), _run_writer(spool)).keys()) == [1, 2]
        rows.append((cursor, uploads, pruned, whole))
        journal.close()
        catalog.close()
    out = [] if rows[0] == rows[1] else [f"I8: a second recovery finds {rows[1]}, the first {rows[0]}"]
    cursor, uploads, pruned, whole = rows[0]
    marks = [p for p in promises if p[0] in {"cursor", "attempt"}]
    while marks and marks[-1][0] == "attempt" and len(marks) > 1 and marks[-2][0] == "attempt":
        marks.pop()
    allowed = {0} if not marks else {p[1] for p in marks[-1:]} | {p[1] for p in marks[-2:-1] if marks[-1][0] == "attempt"}
    if marks and marks[0] == marks[-1]:
        allowed.add(0)  # the first receipt was under way
    if (cursor[0] if cursor else 0) not in allowed:
        out.append(f"I1: the receipts end at {cursor and cursor[0]}, they should at {sorted(allowed)}")
    if {p[1] for p in promises if p[0] == "upload"} - uploads:
        out.append("I1: a blob's receipt is lost")
    if "run" in kinds and not whole and not pruned:
        out.append("I7: a run's records are gone, and no prune of it is in the journal")
    if "pruned" in kinds and not pruned:
        out.append("I1: a prune that was done is not in the journal")
    return out


def _run_writer(spool: Spool) -> str:
    """Return the only writer of the run."""
    [writer] = spool.run(RUN).writer_ids() or [RUN]
    return writer


def histories(c: Context, out: Part, live: Callable[..., Any], judge: Callable[..., list[str]], n: int, name: str) -> None:
    """Play so many histories, each cut at one random moment."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else c.folder))
    try:
        with small_segments():
            for number in range(n):
                choice = c.random(f"{name} {number}")
                root, target = base / "a", base / "b"
                root.mkdir()
                target.mkdir()
                log = Log(root)
                with log.recording():
                    recorded = live(choice, log, root)
                for end in log.afterwards:
                    end()
                promises = cut(log, choice.randrange(len(log.operations) + 1), choice, target)
                out.tried(judge(target, promises, recorded), f"history {number}")
                out.add(operations=len(log.operations))
                shutil.rmtree(root)
                shutil.rmtree(target)
                if number % 1000 == 999:
                    c.say(f"    {number + 1} histories, {len(out.violations)} violations")
    finally:
        shutil.rmtree(base, ignore_errors=True)


@part("F4", "modelled power cuts: writers, upkeep, blobs")
def model_writers(c: Context, out: Part) -> None:
    histories(c, out, _writing, _judge_writing, c.pick(150, 2000, 10_000), "writers")


@part("F4", "modelled power cuts: journal, compaction, pruning")
def model_agent(c: Context, out: Part) -> None:
    import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog needs a child process

    histories(c, out, _agent_life, _judge_agent, c.pick(40, 500, 3000), "agent")

