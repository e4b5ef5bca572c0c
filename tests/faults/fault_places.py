"""F13, F16, F19, F22: very many runs, a network file system, a huge backlog, spools that are carried elsewhere."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import hostile
from checker import check_drained, check_prefix, check_spool, read_run
from real_server import RealServer
from recorded import begin, fill, whole
from trials import Context, Done, NotHere, Part, Stage, part, sync_at_once, until

from simspool.spool import Durability, Kind, Writer, ids, open_spool, segment


def check_marks(server: RealServer, spool_path: Path) -> list[str]:
    """I1 and I3 for every run of a spool, by the server's database alone: thousands of runs in seconds."""
    spool, out = open_spool(spool_path), []
    with closing(sqlite3.connect(f"file:{server.data}/server.db?mode=ro", uri=True, timeout=30)) as db:
        for run in spool.run_ids():
            out += check_prefix(db, run, read_run(spool, run), whole=True)
    return out


@part("F13", "very many runs in one spool, one in a hundred active")
def many_runs(c: Context, out: Part) -> None:
    runs = c.pick(150, 1000, 10_000)
    with Stage(c.room(), c.server) as stage:
        spool = open_spool(stage.spool, create=True)
        live = []
        for number in range(runs):
            if number % 100 == 0:
                _, writer = begin(spool, f"live {number}")
                fill(writer, 5)
                live.append(writer)
            else:
                whole(spool, f"run {number}", points=5, events=1)
        began = time.monotonic()
        first = stage.sync(timeout=900)
        out.add(runs=runs, first_sync_s=time.monotonic() - began)
        for writer in live:
            fill(writer, 5, start=5)
        began = time.monotonic()
        second = stage.sync()
        out.add(second_sync_s=time.monotonic() - began, memory_MiB=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
        for writer in live:
            writer.close({"status": "completed"})
        third = stage.sync()
        codes = [first.code, second.code, third.code]
        wrong = [] if codes == [0, 0, 0] else [f"I8: the syncs ended with {codes}: {first.errors[-200:]}{second.errors[-200:]}"]
        out.tried(wrong + check_marks(c.server, stage.spool))
        out.n = runs


@part("F19", "a backlog of very many records in very many segments: seconds to the first send")
def backlog(c: Context, out: Part) -> None:
    records, before = c.pick(5_000, 100_000, 1_000_000), segment.SEGMENT_MAX
    with Stage(c.room(), c.server) as stage:
        spool = open_spool(stage.spool, create=True)
        raw = ids.new_id()
        segment.SEGMENT_MAX = 8192  # a hundred records each
        try:
            writer = Writer(spool.run(ids.to_text(raw)).writers, raw, durability=Durability.LAZY, mapped=False)
            writer.record(Kind.RUN, {"name": "backlog", "status": "running", "folder": "/", "metadata": {}, "tags": []})
            for n in range(records):
                writer.metrics({"n": n, "x": n * 0.5}, step=n)
                if n % 2000 == 0:
                    writer.maintain()
            writer.close({"status": "completed"})
        finally:
            segment.SEGMENT_MAX = before
        began, first = time.monotonic(), []

        def note(_method: str, path: str, _n: int) -> str:
            if path.endswith("/drain") and not first:
                first.append(time.monotonic() - began)
            return "ok"

        with hostile.Hostile(c.server.url, note) as proxy:
            done = stage.sync("env", f"SIMSPOOL_URL={proxy.url}", timeout=900)
        out.add(records=records, segments=len(os.listdir(writer.folder)), until_the_first_send_s=first[0] if first else -1,
                until_all_is_acknowledged_s=time.monotonic() - began)  # fmt: skip
        wrong = [] if done.code == 0 else [f"I8: the sync ended with {done.code}: {done.errors[-300:]}"]
        out.tried(wrong + check_marks(c.server, stage.spool))


# ---------------------------------------------------------------------- F16


@contextmanager
def network_disk(folder: Path, *mounts: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Mount a folder over the SFTP protocol, once for each "host"; yields the servers. Nothing listens: both ends share a socket pair."""
    server = next((p for p in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server") if os.path.exists(p)), None)
    if shutil.which("sshfs") is None or server is None:
        raise NotHere("no sshfs or no sftp-server: apt-get install sshfs openssh-sftp-server")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        raise NotHere("mounts need root and /dev/fuse")
    folder.mkdir(exist_ok=True, mode=0o700)
    servers, clients = [], []
    try:
        for at in mounts:
            at.mkdir()
            near, far = socket.socketpair()
            servers.append(subprocess.Popen([server], stdin=far, stdout=far, stderr=subprocess.DEVNULL))
            clients.append(subprocess.Popen(["sshfs", "-f", "-o", "passive", f"host:{folder}", str(at)], stdin=near, stdout=near,
                                            stderr=subprocess.DEVNULL))  # fmt: skip
            near.close()
            far.close()
            until(lambda at=at: os.path.ismount(at), 20)  # type: ignore[misc]
        yield servers
    finally:
        for at in mounts:
            subprocess.run(["umount", "-l", str(at)], check=False, capture_output=True)
        for process in (*clients, *servers):
            process.kill()
            process.wait()


@part("F16", "a network disk (sshfs): scripts on one mount, the agent on another, one of them hangs for a while")
def network_disks(c: Context, out: Part) -> None:
    for _ in range(c.pick(1, 2, 12)):
        choice, room = c.random(f"sshfs {out.n}"), c.room()
        with network_disk(room / "disk", room / "a", room / "b") as (first, second), \
                Stage(room, c.server, spool=room / "a" / "spool") as stage:  # fmt: skip
            script = stage.script(calls=600, rate=300, files=1).wait_for(5)
            there = {"SIMSPOOL_DIR": str(room / "b" / "spool")}
            until((room / "b" / "spool" / "SPOOL").exists)
            agent = stage.agent(env=there)
            script.wait_for(choice.randrange(50, 400))
            hung = choice.choice([first, second])
            hung.send_signal(signal.SIGSTOP)
            time.sleep(choice.uniform(0.5, 2.0))
            hung.send_signal(signal.SIGCONT)
            if choice.random() < 0.3:
                script.kill()
            script.wait()
            stage.settle(agent)
            stage.spool = room / "disk" / "spool"  # what the disk itself has
            stage.environment["SIMSPOOL_DIR"] = str(stage.spool)
            out.tried(check_drained(stage))


# ---------------------------------------------------------------------- F22


@part("F22", "a spool that is carried away and synced from there and from here, at once and again")
def carried(c: Context, out: Part) -> None:
    """The spool is copied as a folder, in the middle of a run. The script lives on until both are synced: an agent that finds a copy of a
    writer whose process is gone closes the copy."""
    for _ in range(c.pick(1, 3, 20)):
        choice = c.random(f"carried {out.n}")
        with Stage(c.room(), c.server) as stage:
            script = stage.script(calls=1000, rate=700, files=1, linger=600).wait_for(choice.randrange(50, 900))
            if choice.random() < 0.5:
                stage.sync()
            there = stage.folder / "carried"
            there.mkdir()
            shutil.copytree(stage.spool, there / "spool", ignore=lambda _, names: [n for n in names if n.startswith(".tmp") or n == "lock"])
            copy = Stage(there, c.server)
            codes = [done.code for done in sync_at_once(copy, stage)]
            script.wait_for(1001)
            codes += [copy.sync().code, stage.sync().code]
            wrong = [] if codes == [0] * 4 else [f"I8: the syncs ended with {codes}"]
            script.kill()
            out.tried([*wrong, *check_drained(stage)])


@part("F22", "bundles of runs that go on, each imported twice, and one server that both spools sync to at once")
def bundled(c: Context, out: Part) -> None:
    for _ in range(c.pick(1, 4, 20)):
        choice = c.random(f"bundled {out.n}")
        with Stage(c.room(), c.server) as stage:
            script = stage.script(calls=1000, rate=120, files=2, size=200_000)
            room = stage.folder / "far"
            room.mkdir()
            far = Stage(room, c.server)
            wrong, bundles = list[str](), list[str]()

            def ordered(done: Done, wrong: list[str] = wrong) -> Done:
                if done.code != 0:
                    wrong.append(f"I8: a command ended with {done.code}: {done.output[-200:]}{done.errors[-300:]}")
                return done

            def create(stage: Stage = stage) -> str:
                return str(ordered(stage.command("bundle", "create", "--output", str(stage.folder))).report["path"])

            def bring_receipt(stage: Stage = stage, far: Stage = far) -> None:
                made = ordered(far.command("bundle", "receipt", "--output", str(far.folder))).report["path"]
                ordered(stage.command("bundle", "apply-receipt", made))

            for goal in (*sorted(choice.sample(range(50, 1000), 3)), 1002):
                script.wait_for(goal)
                made = create()
                bundles += [made] if made else []  # none: the last receipt covers everything
                for bundle in choice.sample([bundles[-1], choice.choice(bundles)], 2):
                    ordered(far.command("bundle", "import", bundle))
                for done in sync_at_once(far, stage):
                    ordered(done)
                if choice.random() < 0.5:
                    bring_receipt()
            script.wait()
            if made := create():
                ordered(far.command("bundle", "import", made))
            ordered(far.sync())
            bring_receipt()
            again = far.sync()
            if (again.code, again.report.get("sent_records")) != (0, 0):
                wrong.append(f"I8: a second sync of the far side sent {again.report.get('sent_records')} records")
            wrong += [f"far {text}" for text in check_spool(far.spool, [script.said])]
            out.tried([*wrong, *check_drained(stage)])
