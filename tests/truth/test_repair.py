"""`agent check --repair`: good copies come back, damaged segments are kept and declared, catalogs are rebuilt; twice is once."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from command import Command
from in_process import sync
from memory_target import MemoryTarget
from real_server import RealServer
from recorded import add_file, begin, fill, whole

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.scrub import scrub
from simspool.agent.server.ranges import Malformed, prepare, split
from simspool.agent.targets.port import Range, Unreachable, Verdict
from simspool.agent.truth.repair import Repairer
from simspool.spool import Spool, blobs, layout


def with_file(spool: Spool, path: Path, name: str = "run") -> tuple[str, Path]:
    """Record a run with a file; returns its id and where its blob lies."""
    run, writer = begin(spool, name)
    fill(writer, 5)
    digest = add_file(spool, run, writer, path)
    writer.close({"status": "completed"})
    blobs.publish(spool, spool.run(run), [digest])
    return run, Path(spool.run(run).blobs, digest)


def spoil(path: Path) -> None:
    """Flip a bit of a file, in its own inode."""
    os.chmod(path, 0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Strict(MemoryTarget):
    """Verifies every frame, as the server does."""

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        bad = Verdict("permanent", reason="malformed")
        return [(await super(Strict, self).send([one]))[0] if _is_whole(one) else bad for one in ranges]


def _is_whole(sent: Range) -> bool:
    try:
        prepare(split(sent.data)[0])
    except Malformed:
        return False
    return True


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "a.txt"
    made.write_bytes(b"bytes that matter " * 1000)
    return made


def test_a_blob_comes_back_from_another_run(spool: Spool, agent: Command, file: Path) -> None:
    _, first = with_file(spool, file, "one")
    _, second = with_file(spool, file, "two")
    Path(spool.pool_path(first.name)).unlink()
    first.unlink()
    first.write_bytes(second.read_bytes())  # an inode of its own
    spoil(first)
    assert agent("check") == 8
    assert "`agent check --repair` can do something about 1 of them" in agent.out
    assert digest_of(first) != first.name  # it only looked
    assert agent("check", "--repair") == 0, agent.out
    assert "restored from" in agent.out
    assert digest_of(first) == digest_of(second) == first.name
    assert digest_of(Path(spool.quarantine, f"blob-{first.name}")) != first.name
    assert agent("check") == 0
    assert agent("check", "--repair") == 0


def test_a_blob_comes_back_from_the_server_in_all_runs_and_is_uploaded_no_more(
    spool: Spool, server: RealServer, agent: Command, tmp_path: Path
) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom((8 << 20) + 12345))
    paths = [with_file(spool, file, name)[1] for name in ("one", "two")]
    assert agent("sync") == 0
    pooled = Path(spool.pool_path(paths[0].name))
    assert pooled.exists()
    spoil(paths[0])  # one inode has them all
    assert digest_of(pooled) != pooled.name
    assert agent("check", "--repair", "--json") == 0, agent.out
    assert "restored from the target" in agent.out
    assert {digest_of(p) for p in (*paths, pooled)} == {pooled.name}
    paths[1].unlink()
    paths[0].unlink()
    pooled.unlink()
    assert agent("check") == 8
    assert agent("check", "--repair") == 0, agent.out
    assert {digest_of(p) for p in paths} == {pooled.name}


def test_what_nobody_has_is_said_and_stays(spool: Spool, agent: Command, file: Path) -> None:
    _, blob = with_file(spool, file)
    spoil(blob)  # and the pool's, which is the same
    assert agent("check", "--repair") == 8
    assert "not repaired: no good copy is in the spool, and no target gives files back" in agent.out
    assert blob.exists()


def test_a_damaged_segment_is_kept_declared_and_the_drain_goes_on_for_each_target(spool: Spool, agent: Command) -> None:
    run = whole(spool, points=1000)
    first, second = Strict(), Strict(server="second")
    assert sync(spool, first).state == "done"
    [writer] = spool.run(run).writer_ids()
    path = Path(layout.segments(spool.run(run).writer(writer))[0].path)
    before = path.read_bytes()
    spoil(path)
    report = sync(spool, second)
    assert report.state == "incomplete"
    assert agent("check", "--repair") == 0, agent.out
    assert "declared as lost; a copy is kept" in agent.out
    assert "the catalog disagrees with the spool" in agent.out
    [copy] = Path(spool.quarantine).glob("segment-*.seg")
    assert copy.read_bytes() == path.read_bytes() != before
    assert sync(spool, second).state == "done"
    assert second.marks_of[writer][0] == first.marks_of[writer][0]
    assert sync(spool, first).state == "done"
    assert len(first.requests) == 1  # what it had is not sent again
    assert agent("check", "--repair") == 0
    assert "a copy was made before" in agent.out
    assert "disagrees" not in agent.out


def test_a_half_delivered_writer_goes_on_behind_the_damage(spool: Spool, agent: Command) -> None:
    run, writer = begin(spool)
    fill(writer, 500)
    target = Strict()
    assert sync(spool, target).state == "done"
    fill(writer, 500, start=500)
    writer.close({"status": "completed"})

    def away(_: object) -> list[Verdict] | None:
        raise Unreachable("away")

    target.before_send = away  # everything is ingested, and not sent
    assert sync(spool, target).state == "unreachable"
    path = Path(layout.segments(spool.run(run).writer(writer.id_text))[0].path)
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1  # what the server has
    data[len(data) * 3 // 4] ^= 1  # and what it has not
    os.chmod(path, 0o600)
    path.write_bytes(data)
    target.before_send = lambda _: None
    assert sync(spool, target).state == "incomplete"
    assert agent("check", "--repair") == 0
    assert sync(spool, target).state == "done"
    assert target.marks_of[writer.id_text][0] == 1002


def test_damage_after_the_delivery_is_no_difference_on_the_server(spool: Spool, server: RealServer, agent: Command) -> None:
    run = whole(spool, points=1000)
    assert agent("sync") == 0
    [writer] = spool.run(run).writer_ids()
    spoil(Path(layout.segments(spool.run(run).writer(writer))[0].path))
    [line] = agent.lines("verify", run)
    assert (line["verdict"], "no longer in the spool" in line["notes"][0]) == ("equal", True)
    assert agent("check", "--repair") == 0
    assert agent("sync") == 0, agent.err
    [line] = agent.lines("verify", run)
    assert line["verdict"] == "explained"
    assert line["explained"][0] == "metric count: 999 points recorded, 1000 there (+1), as 1 records were lost here since"
    [body] = agent.lines("status", run)
    assert (body["records"]["lost"], body["balanced"]) == (1, True)
    assert agent("status") == 0
    assert f"of writer {writer} in run {run}: lost" in agent.out


def test_a_catalog_that_disagrees_is_set_aside(spool: Spool, agent: Command) -> None:
    whole(spool, points=50)
    target = MemoryTarget()
    sync(spool, target)
    catalog = Catalog(catalog_path(spool))
    catalog.connection.execute("UPDATE cursors SET mark = mark - 10")
    catalog.close()
    assert agent("check", "--repair") == 0
    assert "its cursors are not those of the journal" in agent.out
    assert sync(spool, target).state == "done"
    assert len(target.requests) == 1  # nothing was sent twice
    assert agent("check", "--repair") == 0
    assert "disagrees" not in agent.out


def test_leftovers_of_killed_operations_go_when_they_are_old(spool: Spool, agent: Command, file: Path) -> None:
    run, blob = with_file(spool, file)
    old, young = (Path(spool.run(run).blobs, f".tmp-{n}") for n in ("old", "young"))
    alone = Path(spool.pool_path("0" * 64))
    alone.parent.mkdir(parents=True, exist_ok=True)
    for path in (old, young, alone):
        path.write_bytes(b"x")
    day_ago = time.time() - 90000
    for path in (old, alone):
        os.utime(path, (day_ago, day_ago))
    agent("check", "--repair", "--no-blobs")
    assert [p.exists() for p in (old, young, alone, blob)] == [False, True, False, True]


def test_nothing_is_repaired_while_an_agent_serves_the_spool(spool: Spool, agent: Command, file: Path, tmp_path: Path) -> None:
    _, blob = with_file(spool, file)
    with open(tmp_path / "agent.log", "w") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while agent.lines("status")[0]["agent"] is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert agent("check", "--repair") == 10
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
    assert blob.exists()


@pytest.mark.parametrize("call", ["rename", "link", "unlink", "fsync"])
def test_a_repair_that_is_killed_anywhere_is_finished_by_the_next(spool: Spool, agent: Command, file: Path, call: str) -> None:
    for when in range(1, 6):
        run, blob = with_file(spool, file, f"a {call} {when}")
        Path(spool.pool_path(blob.name)).unlink(missing_ok=True)
        good = Path(spool.run(with_file(spool, file, "good")[0]).blobs, blob.name)
        Path(spool.pool_path(blob.name)).unlink()
        blob.unlink()
        blob.write_bytes(good.read_bytes())
        spoil(blob)
        died = _repair_until(spool, call, when)
        assert agent("check", "--repair") == 0, (when, agent.out)
        assert digest_of(blob) == digest_of(good) == blob.name
        assert agent("check") == 0
        if not died:
            break
    assert when > 1  # it was killed at least once


def _repair_until(spool: Spool, call: str, when: int) -> bool:
    """Repair in a process that dies at the `when`th such call; False when it came to its end."""
    pid = os.fork()
    if pid == 0:
        left, real = [when], getattr(os, call)

        def dies(*args: object, **options: object) -> object:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(os, call, dies)
        repairer = Repairer(spool, lambda *_: "nobody is asked", dry=False)
        for finding in list(scrub(spool)):
            repairer.finding(finding)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
