"""A target of kind "bundle": nothing is sent to it, and what it lacks is kept, shown and counted like any other's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Command
from in_process import serve_agent
from memory_target import MemoryTarget
from recorded import begin, fill, whole
from sides import BUNDLE, SERVER, A, Side, carry

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.carry.parts import NotTaken
from simspool.agent.carry.target import add, choose
from simspool.agent.cli.applying import apply_anywhere
from simspool.agent.drain.backoff import Backoff
from simspool.agent.exit_codes import CommandError
from simspool.agent.housekeeping import Housekeeping
from simspool.agent.targets.build import make_target
from simspool.agent.targets.port import Refused
from simspool.agent.targets.settings import TargetSettings, own_targets, parse
from simspool.sdk.errors import ConfigError
from simspool.spool import Spool

MEMORY = TargetSettings("memory", "simspool", "memory://")


@pytest.fixture
def gap(spool: Spool, tmp_path: Path) -> Iterator[Gap]:
    """The spool of this test, with the other side of the gap."""
    made = Gap(spool, tmp_path)
    yield made
    made.far.close()


class Gap:
    """Brings what is recorded in a spool to another one, and receipts back, while no agent has it open."""

    def __init__(self, spool: Spool, tmp_path: Path) -> None:
        self.path, self.far = Path(spool.path), Side(tmp_path / "far")
        self.far.serves(A)

    def bring(self, run: str, upto: int | None = None, **said: Any) -> bytes:
        """Carry a run, deliver it there (up to a mark), and return the receipt."""
        with Side(self.path) as origin:
            origin.take_in()
            carry(origin, self.far, run)
            self.far.take_in()
            self.far.deliver("a", run, None if upto is None else dict.fromkeys(self.far.recorded(run), upto), **said)
            return self.far.receipt(origin)


# ------------------------------------------------------------------ settings and commands


def test_it_is_added_listed_tried_and_removed(spool: Spool, agent: Command) -> None:
    assert agent("target", "add", "carried", "bundle") == 0
    assert agent.out == "added carried: bundle at bundle:carried; `agent bundle create` carries to it\n"
    [row] = agent.lines("target", "ls")
    assert (row["kind"], row["address"], row["server"], row["state"], row["required"]) == (
        "bundle", "bundle:carried", "bundle:carried", "by bundles", True,
    )  # fmt: skip
    assert agent("target", "test", "--all") == 0
    assert "nothing connects to it" in agent.out
    assert agent("target", "rm", "carried") == 0
    assert own_targets(spool) == {}


@pytest.mark.parametrize("args", [("carried", "bundle", "http://x"), ("lab", "mlflow")])
def test_an_address_is_for_every_other_kind(spool: Spool, agent: Command, args: tuple[str, ...]) -> None:
    assert agent("target", "add", *args) == 2
    assert "address" in agent.err
    assert own_targets(spool) == {}


@pytest.mark.parametrize("key", ["url", "path", "token_file", "bandwidth", "uploads", "experiment", "format"])
def test_it_has_no_setting_of_a_connection(key: str) -> None:
    value = 4 if key == "uploads" else "x"
    with pytest.raises(ConfigError, match=key):
        parse("carried", {"kind": "bundle", key: value}, "simspool.toml")


def test_a_table_of_simspool_toml_names_one(spool: Spool, agent: Command, tmp_path: Path) -> None:
    (tmp_path / "simspool.toml").write_text('[target.stick]\nkind = "bundle"\nrequired = false\n')
    [row] = agent.lines("target", "ls")
    assert (row["name"], row["kind"], row["required"], row["server"]) == ("stick", "bundle", False, "bundle:stick")


def test_the_one_that_is_meant_is_chosen_or_added(spool: Spool) -> None:
    other = TargetSettings("other", "bundle", "bundle:other")
    assert choose([MEMORY]) is None
    assert choose([MEMORY, other]) == other
    assert choose([BUNDLE, other], "bundle") == BUNDLE
    with pytest.raises(CommandError, match="--target bundle or --target other"):
        choose([BUNDLE, other])
    with pytest.raises(CommandError, match="no target 'memory' of kind"):
        choose([MEMORY, other], "memory")
    assert add(spool, [MEMORY]) == TargetSettings("bundle", "bundle", "bundle:bundle", source="spool")
    assert own_targets(spool) == {"bundle": {"kind": "bundle"}}
    with pytest.raises(CommandError, match="agent target add OTHER bundle"):
        add(spool, [TargetSettings("bundle", "directory", "/x")])


def test_nothing_ever_connects_to_it() -> None:
    with pytest.raises(Refused, match="agent bundle create"):
        make_target(BUNDLE)


# ------------------------------------------------------------------ status, sync, verify, dead


def test_a_sync_of_bundles_alone_says_what_waits_and_is_done_when_receipts_cover_it(spool: Spool, agent: Command, gap: Gap) -> None:
    run = whole(spool)
    agent("target", "add", "bundle", "bundle")
    assert agent("sync") == 5
    assert "105 records and 0 files wait for a bundle or its receipt: `agent bundle create`" in agent.err
    [report] = agent.lines("sync", code=5)
    assert (report["state"], report["records_left"], report["targets"][0]["state"]) == ("no-target", 105, "carried")
    document = gap.bring(run, 50)
    assert apply_anywhere(spool, document, "bundle")["records"] == 50
    [report] = agent.lines("sync", code=5)
    assert (report["records"], report["records_left"]) == (105, 55)
    assert apply_anywhere(spool, gap.bring(run), "bundle")["complete"] == 1
    assert agent("sync") == 0
    assert "1 runs are on bundle:bundle: 105 records" in agent.out


def test_beside_another_target_it_does_not_decide_how_a_sync_ends(spool: Spool) -> None:
    whole(spool)
    target = MemoryTarget()
    for required in (True, False):
        settings = [TargetSettings("memory", "simspool", "memory://", required=required), BUNDLE]

        async def once() -> Any:
            made = Agent(AgentConfig(spool, load=lambda: settings), build=lambda _: target, backoff=Backoff(lambda: 0.001))  # noqa: B023
            async with made as agent, asyncio.timeout(30):
                return await agent.sync()

        report = asyncio.run(once())
        assert (report.state, report.exit_code, report.records_left) == ("done", 0, 0)
        assert {t.name: (t.state, t.records_left) for t in report.targets} == {"memory": ("done", 0), "bundle": ("carried", 105)}


def test_status_shows_what_waits_and_what_is_in_custody(spool: Spool, agent: Command, gap: Gap) -> None:
    run, writer = begin(spool)
    fill(writer, 100)
    agent("target", "add", "bundle", "bundle")
    assert agent("status") == 0
    assert "no receipt came back yet: `agent bundle create` carries what waits" in agent.out
    assert "never reached" not in agent.out
    apply_anywhere(spool, gap.bring(run, 40), "bundle")
    fill(writer, 10)
    assert agent("status") == 0
    assert "111 recorded, 40 acknowledged, 71 waiting" in agent.out
    assert f"to the spool {gap.far.spool.id}, whose latest receipt is of " in agent.out
    assert "it has 61 records that it has not delivered" in agent.out
    [body] = agent.lines("status")
    [target] = body["targets"]
    assert (target["far"], target["in_custody"], target["kind"]) == (gap.far.spool.id, 61, "bundle")
    assert agent("status", run) == 0
    assert "it has 61 records" in agent.out


def test_verify_says_that_it_is_counted_on_the_far_side(spool: Spool, agent: Command) -> None:
    whole(spool)
    agent("target", "add", "bundle", "bundle")
    assert agent("verify", "--all") == 0
    assert "bundle: what bundles carry is counted on the far side" in agent.err
    [line] = agent.lines("verify", "--all")
    assert (line["target"], line["verdict"]) == ("bundle", "carried")


def test_refusals_are_shown_and_given_up_here_and_tried_again_there(spool: Spool, agent: Command, gap: Gap) -> None:
    run = whole(spool)
    agent("target", "add", "bundle", "bundle")
    gap.bring(run)
    [writer] = gap.far.recorded(run)
    apply_anywhere(spool, gap.bring(run, refused=[(writer, 9, "a bad name")]), "bundle")
    [letter] = agent.lines("dead", "ls")
    assert (letter["id"], letter["reason"], letter["target"]) == (f"{writer}.9", "a: a bad name", "bundle")
    assert agent("retry", "--all") == 2
    assert "`agent retry` in the spool that imports" in agent.err
    assert agent("sync") == 4
    assert agent("dead", "drop", f"{writer}.9") == 0
    assert agent("sync") == 0


# ------------------------------------------------------------------ beside a running agent


def serving(spool: Spool, *targets: TargetSettings) -> Agent:
    config = AgentConfig(spool, load=lambda: list(targets), grace=0.0)
    return Agent(config, build=lambda _: MemoryTarget(), backoff=Backoff(lambda: 0.01))


def test_the_running_agent_applies_receipts_and_prunes_what_they_cover(spool: Spool, gap: Gap) -> None:
    run, other = whole(spool), whole(spool)
    part, all_of_it = gap.bring(run, 50), gap.bring(run)

    async def story(made: Agent) -> None:
        assert made.drains is not None
        report = await made.sync()
        assert (report.state, report.exit_code) == ("done", 0)
        assert made.drains.required_servers == ["memory", SERVER]
        housekeeping = Housekeeping(made)
        for document, left in ((None, {run, other}), (part, {run, other}), (all_of_it, {other})):
            if document is not None:
                found = await asyncio.to_thread(apply_anywhere, spool, document, "bundle")
                assert not found["nothing_new"]
            await housekeeping.retain()
            assert set(spool.run_ids()) == left
        with pytest.raises(NotTaken, match="knows no target 'other'"):
            await asyncio.to_thread(apply_anywhere, spool, all_of_it, "other")
        for wrong in (b"x", b"{}"):
            with pytest.raises(NotTaken, match="no receipt"):
                await asyncio.to_thread(apply_anywhere, spool, wrong, "bundle")

    serve_agent(lambda: serving(spool, BUNDLE, MEMORY), story)


def test_a_running_agent_with_bundles_alone_says_so_and_keeps_everything(spool: Spool, agent: Command) -> None:
    run = whole(spool)

    async def story(made: Agent) -> None:
        assert made.drains is not None
        assert not made.drains
        assert made.drains.required_servers == [SERVER]
        assert "carried by bundles" in made.doing()
        await Housekeeping(made).retain()
        assert spool.run_ids() == [run]
        assert await asyncio.to_thread(agent, "status") == 0
        assert "carried by bundles" in agent.out
        assert await asyncio.to_thread(agent, "sync") == 5
        assert "wait for a bundle" in agent.err

    serve_agent(lambda: serving(spool, BUNDLE), story)


def test_a_run_that_is_still_written_is_not_pruned_whatever_receipts_say(spool: Spool, gap: Gap) -> None:
    run, writer = begin(spool)
    fill(writer, 10)
    apply_anywhere(spool, gap.bring(run), "bundle")
    with Side(Path(spool.path)) as origin:
        assert origin.prune(SERVER) == []
    assert os.path.isdir(spool.run(run).path)
    assert writer.close({"status": "completed"})
