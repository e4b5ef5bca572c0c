"""What targets refuse: shown, exported, given up, tried again, and then taken once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command import Command
from in_process import sync
from memory_target import MemoryTarget
from real_server import RealServer
from recorded import add_file, begin, fill, whole

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.journal import Journal
from simspool.agent.status import overview
from simspool.agent.targets.port import File, Range, Traits, Unreachable, Verdict
from simspool.agent.truth.dead import decide, letters
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Kind, Spool, Writer, blobs

# what a later version of the server might take
UPGRADED = """
import sys
from simspool.agent.server import artifacts
artifacts.CATEGORIES += ("odd",)
from simspool.agent.cli import main
main(sys.argv[4:], prog_name="agent")
"""
MEMORY = KnownTarget("server", "", "memory://", True, "memory")


def odd(spool: Spool, path: Path, name: str = "odd run") -> tuple[str, Writer]:
    """Record a run with a file of a category that no server takes as yet; it is still open."""
    run, writer = begin(spool, name)
    fill(writer, 5)
    blob = blobs.put_file(spool, spool.run(run), str(path))
    body = {"name": path.name, "category": "odd", "digest": blob.digest, "size": blob.size, "mime": "text/plain", "path": "x"}
    assert writer.record(Kind.ARTIFACT, body)
    fill(writer, 5, start=5)
    return run, writer


def test_a_record_that_was_refused_is_shown_given_up_and_taken_by_a_later_server_once(
    spool: Spool, server: RealServer, agent: Command, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("bytes")
    run, writer = odd(spool, tmp_path / "a.txt")
    writer.close({"status": "completed"})
    assert agent("sync") == 4
    [letter] = agent.lines("dead", "ls")
    assert (letter["run"], letter["sort"], letter["id"]) == (run, "record", f"{writer.id_text}.7")
    assert "category" in letter["reason"]
    assert agent("dead", "ls", run) == 0
    assert "record 7" in agent.out
    [shown] = agent.lines("dead", "show", letter["id"])
    assert shown["record"]["body"]["category"] == "odd"
    assert agent.lines("dead", "drop", "--all") == [{"count": 1}]
    assert agent.lines("dead", "ls") == []
    [body] = agent.lines("status")
    assert (body["records"]["given_up"], body["records"]["refused"], body["balanced"]) == (1, 0, True)
    assert agent("sync") == 0
    assert agent.lines("verify", run)[0]["verdict"] == "equal"
    assert agent.lines("retry", "--id", letter["id"]) == [{"count": 1}]
    assert agent("dead", "ls") == 0
    assert "to be sent again" in agent.out
    assert agent("sync") == 4  # the server has not changed
    assert [one["again"] for one in agent.lines("dead", "ls")] == [False]
    server.kill(signal.SIGTERM)
    server.before = sys.executable, "-c", UPGRADED
    server.start()
    assert agent("retry", "--all") == 0
    assert agent("sync") == 0, agent.err
    assert agent.lines("dead", "ls", "--dropped") == []
    [artifact] = server.get(f"/runs/{run}/artifacts")
    assert (artifact["name"], artifact["category"]) == ("a.txt", "odd")
    assert server.points(run, "loss") == [(n, n / 2) for n in range(10)]
    [line] = agent.lines("verify", run, "--deep")
    assert (line["verdict"], line["files"]) == ("equal", 1)
    [body] = agent.lines("status")
    assert (body["records"]["acknowledged"], body["records"]["given_up"]) == (body["records"]["recorded"], 0)


def test_the_journal_alone_knows_what_was_decided(spool: Spool, server: RealServer, agent: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bytes")
    for name in ("one", "two"):
        odd(spool, tmp_path / "a.txt", name)[1].close({"status": "completed"})
    assert agent("sync") == 4
    first, second = agent.lines("dead", "ls")
    assert agent("dead", "drop", first["id"]) == 0
    assert agent("retry", "--id", second["id"]) == 0
    before = agent.lines("dead", "ls", "--dropped")
    assert [(one["given_up"], one["again"]) for one in before] == [(True, False), (False, True)]
    os.unlink(catalog_path(spool))
    assert agent.lines("dead", "ls", "--dropped") == before
    catalog = Catalog(catalog_path(spool))
    journal = Journal(spool, catalog)
    journal.close()
    journal.compact()
    journal.close()
    catalog.close()
    os.unlink(catalog_path(spool))
    assert agent.lines("dead", "ls", "--dropped") == before


def test_a_running_agent_carries_out_what_is_decided(spool: Spool, server: RealServer, agent: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bytes")
    run, writer = odd(spool, tmp_path / "a.txt")
    env = {**os.environ, **server.environment}
    with open(tmp_path / "agent.log", "w") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (found := agent.lines("dead", "ls")):
            assert time.monotonic() < deadline, (tmp_path / "agent.log").read_text()
            time.sleep(0.1)
        server.kill()
        server.before = sys.executable, "-c", UPGRADED
        server.start()
        assert agent.lines("dead", "drop", found[0]["id"]) == [{"count": 1}]
        assert agent.lines("dead", "ls") == []
        assert agent.lines("retry", "--id", found[0]["id"]) == [{"count": 1}]
        assert agent("sync") == 0, agent.err
        assert agent.lines("status")[0]["agent"]["pid"] == daemon.pid
        assert agent.lines("dead", "ls", "--dropped") == []
        assert [a["category"] for a in server.get(f"/runs/{run}/artifacts")] == ["odd"]
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
    writer.close({"status": "completed"})


class Once(MemoryTarget):
    """Refuses record 3 of every writer until it is `willing`; loses the reply of the first try to send it again."""

    def __init__(self) -> None:
        super().__init__(traits=Traits(effect="at-least-once"))
        self.willing = False
        self.tries: list[tuple[int, int, bool]] = []

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        made = []
        for one in ranges:
            if one.again:
                self.tries.append((one.first, one.last, one.doubtful))
                if self.willing and len(self.tries) == 1:
                    raise Unreachable("the reply is lost")
                made.append(Verdict("accepted", one.last, one.chain_after, refused=[] if self.willing else [(3, "never")]))
            else:
                [verdict] = await super().send([one])
                made.append(Verdict(verdict.kind, verdict.mark, verdict.chain, refused=[(3, "no")] if one.first <= 3 <= one.last else []))
        return made


def decided(spool: Spool, decision: str) -> int:
    """Retry, or drop, all that the target in memory refused."""
    catalog = Catalog(catalog_path(spool))
    journal = Journal(spool, catalog)
    try:
        return decide(catalog, journal, decision, [("memory", [one.id for one in letters(catalog, [MEMORY])])])
    finally:
        journal.close()
        catalog.close()


def shown(spool: Spool) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counts of records and files."""
    catalog = Catalog(catalog_path(spool))
    try:
        found = overview(catalog, spool, [MEMORY])
        assert found["balanced"], found["imbalances"]
        return found["records"], found["files"]
    finally:
        catalog.close()


def test_a_target_that_may_do_it_twice_is_told_so(spool: Spool) -> None:
    whole(spool, points=4)
    target = Once()
    assert sync(spool, target).refused == 1
    target.willing = True
    assert decided(spool, "retry") == 1
    report = sync(spool, target)
    assert (report.state, report.refused, report.exit_code) == ("done", 0, 0)
    assert target.tries == [(3, 3, False), (3, 3, True)]
    records, _ = shown(spool)
    assert records["acknowledged"] == records["recorded"]


def test_one_that_is_refused_again_has_the_new_reason(spool: Spool) -> None:
    whole(spool, points=4)
    target = Once()
    sync(spool, target)
    decided(spool, "retry")
    assert sync(spool, target).refused == 1
    catalog = Catalog(catalog_path(spool))
    assert [(one.reason, one.again) for one in letters(catalog, [MEMORY])] == [("never", False)]
    catalog.close()


def test_a_writer_that_is_refused_as_a_whole_is_given_up_or_taken_later(spool: Spool) -> None:
    whole(spool, points=4)
    target = MemoryTarget()
    target.before_send = lambda ranges: [Verdict("permanent", reason="forbidden") for _ in ranges]
    assert (sync(spool, target).refused, shown(spool)[0]["refused"]) == (9, 9)
    assert decided(spool, "drop") == 1
    report = sync(spool, target)
    assert (report.exit_code, report.refused) == (0, 0)
    assert (shown(spool)[0]["given_up"], shown(spool)[0]["refused"]) == (9, 0)
    assert (decided(spool, "drop"), decided(spool, "retry")) == (0, 1)
    target.before_send = lambda _: None
    assert sync(spool, target).exit_code == 0
    assert shown(spool)[0]["acknowledged"] == 9


class Picky(MemoryTarget):
    """Takes no files until it is `willing`."""

    willing = False

    async def put(self, file: File, path: str) -> str | None:
        return await super().put(file, path) if self.willing else "it says no"


def test_a_file_that_is_refused_is_given_up_or_taken_later(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bytes")
    run, writer = begin(spool)
    add_file(spool, run, writer, tmp_path / "a.txt")
    writer.close({"status": "completed"})
    target = Picky()
    assert sync(spool, target).refused == 1
    catalog = Catalog(catalog_path(spool))
    [letter] = letters(catalog, [MEMORY])
    catalog.close()
    assert (letter.sort, letter.name, letter.reason, letter.run) == ("file", "a.txt", "it says no", run)
    assert decided(spool, "drop") == 1
    assert sync(spool, target).exit_code == 0
    assert shown(spool)[1] == {**dict.fromkeys(shown(spool)[1], 0), "recorded": 1, "given_up": 1}
    assert decided(spool, "retry") == 1
    target.willing = True
    assert sync(spool, target).exit_code == 0
    assert shown(spool)[1]["acknowledged"] == 1


def test_what_is_not_there_is_said(spool: Spool, server: RealServer, agent: Command) -> None:
    assert agent("dead", "show", "nothing") == 2
    assert "has the id 'nothing'" in agent.err
    assert agent("retry") == 2
    assert agent("dead", "ls", "--target", "other") == 2
    assert "there are server" in agent.err
    assert json.loads(agent("retry", "--all", "--json") == 0 and agent.out) == {"count": 0}
