"""Several targets of one spool: each with its own cursors, none waits for another, and what one lacks is known."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from in_process import serve_agent, total, until
from memory_target import MemoryTarget
from recorded import add_file, begin, fill, whole

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.drain.backoff import Backoff
from simspool.agent.journal import Journal
from simspool.agent.sync import SyncReport
from simspool.agent.targets.port import File, Range, Remark, TooLarge, Traits, Unreachable, Verdict
from simspool.agent.targets.settings import TargetSettings, parse, save_own
from simspool.sdk.errors import ConfigError
from simspool.spool import Spool

AT_LEAST_ONCE = Traits(effect="at-least-once", files_by_record=True, audited=5)


def agent_of(spool: Spool, targets: dict[str, MemoryTarget], best_effort: Sequence[str] = ()) -> Agent:
    """Return an agent with these targets, by name."""

    def load() -> list[TargetSettings]:
        return [TargetSettings(name, "simspool", target.url, required=name not in best_effort) for name, target in targets.items()]

    config = AgentConfig(spool, load=load)
    return Agent(config, build=lambda settings: targets[settings.name], backoff=Backoff(lambda: 0.001))


def sync(spool: Spool, targets: dict[str, MemoryTarget], best_effort: Sequence[str] = ()) -> SyncReport:
    async def once() -> SyncReport:
        async with agent_of(spool, targets, best_effort) as agent, asyncio.timeout(50):
            return await agent.sync()

    return asyncio.run(once())


def unreachable() -> None:
    raise Unreachable("no route")


def test_each_target_gets_everything_and_has_a_report_of_its_own(spool: Spool, tmp_path: Path) -> None:
    run, writer = begin(spool, "r")
    fill(writer, 500)
    (tmp_path / "f").write_bytes(b"content")
    add_file(spool, run, writer, tmp_path / "f")
    writer.close({"status": "completed"})
    targets = {"one": MemoryTarget(server="one"), "two": MemoryTarget(server="two", traits=AT_LEAST_ONCE)}
    report = sync(spool, targets)
    assert (report.state, report.exit_code, report.records_left, report.files_left) == ("done", 0, 0, 0)
    assert {t.name: (t.state, t.server, t.sent_records, t.sent_files) for t in report.targets} == {
        "one": ("done", "one", total(targets["one"]), 1),
        "two": ("done", "two", total(targets["two"]), 1),
    }
    assert total(targets["one"]) == total(targets["two"]) > 500
    again = sync(spool, targets)
    assert (again.sent_records, again.sent_files) == (0, 0)


def test_a_target_that_is_down_holds_up_no_other_and_the_sync_says_so(spool: Spool) -> None:
    whole(spool, points=100)
    up, down = MemoryTarget(server="up"), MemoryTarget(server="down")
    down.before_connect = unreachable
    report = sync(spool, {"up": up, "down": down})
    assert total(up) > 100
    assert (report.state, report.exit_code) == ("unreachable", 3)
    assert {t.name: t.state for t in report.targets} == {"up": "done", "down": "unreachable"}


def test_a_best_effort_target_that_is_down_fails_no_sync(spool: Spool) -> None:
    whole(spool, points=100)
    up, down = MemoryTarget(server="up"), MemoryTarget(server="down")
    down.before_connect = unreachable
    report = sync(spool, {"up": up, "down": down}, best_effort=["down"])
    assert (report.state, report.exit_code) == ("done", 0)
    assert {t.name: t.state for t in report.targets} == {"up": "done", "down": "unreachable"}


def test_a_target_that_is_added_later_is_filled_from_the_beginning(spool: Spool) -> None:
    whole(spool, points=100)
    first, later = MemoryTarget(server="first"), MemoryTarget(server="later")
    sync(spool, {"first": first})
    whole(spool, points=50)
    report = sync(spool, {"first": first, "later": later})
    assert report.state == "done"
    assert first.marks_of == later.marks_of


def test_a_running_agent_takes_over_targets_that_are_added_changed_and_removed(spool: Spool) -> None:
    run = whole(spool, points=100)
    made: dict[str, MemoryTarget] = {}

    def build(settings: TargetSettings) -> MemoryTarget:
        return made.setdefault(settings.url, MemoryTarget(server=settings.name))

    def load() -> list[TargetSettings]:
        from simspool.agent.targets.settings import own_targets

        return [found for name, table in own_targets(spool).items() if (found := parse(name, table, "spool"))]

    async def story(agent: Agent) -> None:
        assert agent.drains is not None
        save_own(spool, {"a": {"kind": "simspool", "url": "http://one"}})
        await agent.refresh_targets()
        await until(lambda: "http://one" in made and total(made["http://one"]) > 100)
        save_own(spool, {"a": {"kind": "simspool", "url": "http://two"}, "b": {"kind": "simspool", "url": "http://three"}})
        await agent.refresh_targets()
        await until(lambda: {"http://two", "http://three"} <= made.keys())
        await until(lambda: total(made["http://three"]) > 100)
        save_own(spool, {"b": {"kind": "simspool", "url": "http://three"}})
        await agent.refresh_targets()
        assert list(agent.drains.lanes) == ["b"]
        Path(spool.agent, "targets.json").write_text("{")
        await agent.refresh_targets()
        assert list(agent.drains.lanes) == ["b"]
        assert "targets.json" in agent.drains.problems["targets"]
        assert agent.drains.required_servers is None  # nothing is deleted by settings that nobody can read

    serve_agent(lambda: Agent(AgentConfig(spool, load=load), build=build, backoff=Backoff(lambda: 0.01)), story)
    assert run


def test_a_range_with_an_unknown_end_comes_again_as_it_was_and_is_known_as_such(spool: Spool) -> None:
    run, writer = begin(spool, "r")
    fill(writer, 300)
    target = MemoryTarget(traits=AT_LEAST_ONCE)

    def lose_the_reply(_: Sequence[Range]) -> None:
        raise Unreachable("the reply is lost")

    target.before_send = lose_the_reply
    assert sync(spool, {"t": target}).state == "unreachable"
    lost = target.ranges[0]
    assert (lost.first, lost.doubtful) == (1, False)
    fill(writer, 200)
    writer.close({"status": "completed"})
    target.ranges.clear()
    target.before_send = lambda _: None
    assert sync(spool, {"t": target}).state == "done"  # another agent: it knows from the journal
    first, *rest = [r for r in target.ranges if r.writer == lost.writer]
    assert (first.first, first.last, first.data, first.chain_after, first.end) == (
        lost.first, lost.last, lost.data, lost.chain_after, lost.end,
    )  # fmt: skip
    assert first.doubtful
    assert rest
    assert not any(r.doubtful for r in rest)
    assert run


def test_a_range_that_is_too_large_is_cut_smaller_though_its_intent_is_journaled(spool: Spool) -> None:
    _, writer = begin(spool, "r")
    fill(writer, 3000)
    writer.close({"status": "completed"})
    target = MemoryTarget(traits=AT_LEAST_ONCE)

    def small_only(ranges: Sequence[Range]) -> None:
        if sum(len(r.data) for r in ranges) > 20_000:
            raise TooLarge("413")

    target.before_send = small_only
    report = sync(spool, {"t": target})
    assert (report.state, report.refused) == ("done", 0)
    assert total(target) > 3000


def test_a_sync_beside_an_agent_ends_when_its_target_is_removed(spool: Spool) -> None:
    whole(spool, points=100)
    target = MemoryTarget()
    held = asyncio.Event()

    async def never(_: Sequence[Range]) -> list[Verdict]:
        await held.wait()
        return []

    target.send = never  # type: ignore[method-assign]
    wanted = {"t": target}

    async def story(agent: Agent) -> None:
        assert agent.drains is not None
        said: list[str] = []
        syncing = asyncio.create_task(agent.sync(progress=lambda report: said.extend(t.state for t in report.targets)))
        await until(lambda: "draining" in said)
        wanted.clear()
        await agent.reload_targets()
        report = await syncing
        assert report.state == "incomplete"
        assert "removed" in report.problem

    serve_agent(lambda: agent_of(spool, wanted), story)


def test_what_was_accepted_beside_an_unsent_range_is_acknowledged(spool: Spool) -> None:
    whole(spool, points=50)
    whole(spool, points=60)
    target = MemoryTarget(traits=AT_LEAST_ONCE)

    def half(verdicts: list[Verdict]) -> list[Verdict]:
        if len(target.requests) > 1 or len(verdicts) < 2:
            return verdicts
        return [verdicts[0], *(Verdict("unsent", reason="the server is busy", after=0.01) for _ in verdicts[1:])]

    target.after_send = half
    assert sync(spool, {"t": target}).state == "done"
    sent = [r for r in target.ranges if r.doubtful]
    assert len(target.ranges[0:2]) == 2
    assert len(sent) >= 1


def test_remarks_and_refusals_are_kept_per_run_and_survive_the_catalog(spool: Spool) -> None:
    run = whole(spool, points=10)
    target = MemoryTarget(traits=AT_LEAST_ONCE)

    def remarked(verdicts: list[Verdict]) -> list[Verdict]:
        made = []
        for sent, verdict in zip(target.ranges[-len(verdicts) :], verdicts, strict=True):
            remark = Remark(sent.run, "renamed", "metric a#b as a_b", 3, sent.writer, sent.first)
            made.append(Verdict("accepted", verdict.mark, verdict.chain, refused=[(sent.first, "too odd")], remarks=[remark]))
        return made

    target.after_send = remarked
    assert sync(spool, {"t": target}).exit_code == 4
    for _ in range(2):

        async def look() -> list[tuple[object, ...]]:
            async with agent_of(spool, {"t": target}) as agent:
                return await agent.work(
                    agent.catalog.rows, 'SELECT run, what, detail, "count", (SELECT count(*) FROM refused) FROM remarks'
                )

        assert asyncio.run(look()) == [(run, "renamed", "metric a#b as a_b", 3, 1)]
        for path in Path(os.environ["SIMSPOOL_STATE"]).rglob("catalog.db*"):
            path.unlink()


def test_what_a_target_notes_is_there_after_the_catalog_is_gone_and_after_a_compaction(spool: Spool) -> None:
    run = whole(spool, points=10)
    target = MemoryTarget(traits=AT_LEAST_ONCE)

    async def note(_: Agent) -> None:
        await until(lambda: target.memory is not None)
        assert target.memory is not None
        await target.memory.note({f"{run}/id": "remote", "other": "x"})
        state = await target.memory.run_state(run)
        assert state["writers"]

    def served() -> Agent:
        return agent_of(spool, {"t": target})

    serve_agent(served, note)
    for path in Path(os.environ["SIMSPOOL_STATE"]).rglob("catalog.db*"):
        path.unlink()

    async def recall(agent: Agent) -> None:
        def compact() -> None:
            journal: Journal = agent.journal
            journal.close()
            journal.compact()

        await agent.work(compact)
        await until(lambda: target.memory is not None)
        assert target.memory is not None
        assert await target.memory.recall([f"{run}/id", "other", "none"]) == {f"{run}/id": "remote", "other": "x"}
        await agent.work(agent.journal.prune, run, 0.0, {})
        assert await target.memory.recall([f"{run}/id", "other"]) == {"other": "x"}

    target.memory = None
    serve_agent(served, recall)


def test_a_server_that_was_restored_from_an_old_backup_is_filled_again_though_nothing_new_is_recorded(spool: Spool, tmp_path: Path) -> None:
    old = whole(spool, points=100)
    target = MemoryTarget()
    sync(spool, {"t": target})
    backup, blobs = dict(target.marks_of), set(target.blobs)
    run, writer = begin(spool, "later")
    fill(writer, 300)
    (tmp_path / "f").write_bytes(b"later")
    add_file(spool, run, writer, tmp_path / "f")
    writer.close({"status": "completed"})
    sync(spool, {"t": target})
    whole_now, files = dict(target.marks_of), set(target.blobs)
    target.marks_of, target.blobs = dict(backup), set(blobs)
    assert sync(spool, {"t": target}).state == "done"
    assert (target.marks_of, target.blobs) == (whole_now, files)
    target.marks_of, target.blobs = {}, set()  # a server whose folder was emptied, with the same id
    assert sync(spool, {"t": target}).state == "done"
    assert (target.marks_of, target.blobs) == (whole_now, files)
    assert old


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"url": "http://x", "knid": "mlflow"}, "knid"),
        ({"url": "http://x", "kind": "influx"}, "influx"),
        ({"kind": "mlflow"}, "url is missing"),
        ({"kind": "directory", "path": "there"}, "must be absolute"),
        ({"kind": "simspool", "url": "ftp://x"}, "http://"),
        ({"kind": "simspool", "url": "http://x", "experiment": "e"}, "experiment is a setting of kind 'mlflow'"),
        ({"kind": "simspool", "url": "http://x", "required": "yes"}, "required = 'yes'"),
        ({"kind": "simspool", "url": "http://x", "bandwidth": "fast"}, "10 MB/s"),
        ({"kind": "simspool", "url": "http://x", "uploads": 0}, "from 1 to 64"),
        ({"kind": "simspool", "url": "http://x", "token_file": "/nonexistent/token"}, "/nonexistent/token"),
    ],
)
def test_a_table_that_is_not_valid_names_the_target_the_file_and_the_key(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("mine", table, "/etc/simspool.toml")
    assert "[target.mine] in /etc/simspool.toml" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("text", "rate"), [("10 MB/s", 1e7), ("10 MiB/s", 10 * 2.0**20), (2048, 2048.0), ("1.5k", 1500.0), ("300", 300.0)])
def test_a_rate_is_read_in_decimal_and_binary_units(text: str | int, rate: float) -> None:
    found = parse("t", {"kind": "simspool", "url": "http://x", "bandwidth": text}, "f")
    assert found is not None
    assert found.bandwidth == rate


def test_a_drain_that_is_cancelled_while_its_target_fails_ends(spool: Spool) -> None:
    """A task group whose child fails at the very moment of a cancellation raises the child's error alone."""
    whole(spool, points=100)
    target = MemoryTarget()

    async def once() -> None:
        async with agent_of(spool, {"t": target}) as agent:
            await agent.work(agent.ingest.scan)
            await agent.work(agent.ingest.read)
            agent.drains = agent.make_drains(None, heartbeats=False)
            await agent.drains.load()
            lane = agent.drains.lanes["t"]
            for turns in range(6):
                task = asyncio.create_task(lane.drain.run())

                def fail_and_cancel(_: Sequence[Range], task: asyncio.Task[None] = task, turns: int = turns) -> None:
                    def later(n: int) -> None:
                        task.cancel() if n == 0 else asyncio.get_running_loop().call_soon(later, n - 1)

                    later(turns)
                    raise Unreachable("gone")

                target.before_send = fail_and_cancel
                async with asyncio.timeout(20):
                    await asyncio.gather(task, return_exceptions=True)
                assert task.cancelled()

    asyncio.run(once())


def test_receipts_of_files_do_not_wait_for_one_that_is_refused_last(spool: Spool, tmp_path: Path) -> None:
    """What the target has is acknowledged though no other file comes to go with it, and is sent once."""
    run, writer = begin(spool, "r")
    for n in range(4):
        (tmp_path / f"f{n}").write_bytes(os.urandom(100))
        add_file(spool, run, writer, tmp_path / f"f{n}")
    writer.close({"status": "completed"})
    target = MemoryTarget(traits=Traits(files_by_record=True, uploaders=1))
    put = target.put

    async def last_is_refused(file: File, path: str) -> str | None:
        return "too odd" if file.name == "f3" else await put(file, path)

    async def cannot_tell(files: Sequence[File]) -> list[str]:
        return [f.key for f in files]

    target.put = last_is_refused  # type: ignore[method-assign]
    target.missing = cannot_tell  # type: ignore[method-assign]
    report = sync(spool, {"t": target})
    assert (report.state, report.refused, report.files_left) == ("done", 1, 0)
    assert [f.name for f in target.files] == ["f0", "f1", "f2"]
