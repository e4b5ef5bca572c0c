"""An agent tells people: once for each firing and each end, whatever is restarted, deleted or down meanwhile."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from mail_sink import MailSink
from real_server import agent as command
from recorded import begin, killed
from told import alarming, notifications, serve, sync, until

from simspool.agent.app import Agent
from simspool.agent.catalog.store import catalog_path
from simspool.spool import Durability, Kind, Spool, Writer, atomic, ids


def _mail(sink: MailSink, **options: Any) -> dict[str, Any]:
    return {"mail": {"to": ["me@site"], "smtp": sink.address, **options}}


def _configured_before(spool: Spool, channel: str = "mail") -> None:
    """An agent with this channel was here before."""
    atomic.make_folder(spool.agent)
    atomic.write_json(f"{spool.agent}/notify.json", {channel: 1})


def test_one_mail_for_each_firing_while_the_run_lives(spool: Spool, sink: MailSink) -> None:
    table = _mail(sink)

    async def story(agent: Agent) -> None:
        run, writer = alarming(spool, alerts=2, close=False)
        await until(lambda: len(sink.mails) == 2)
        await until(lambda: agent.notifier is not None and agent.notifier.waiting() == 0)
        assert [(n["state"], n["attempt"]) for n in notifications(spool, run)] == [("trying", 1), ("sent", 1)] * 2
        writer.close({"status": "completed"})

    serve(spool, table, story)
    assert sorted(mail.subject.split(":")[0] for mail in sink.mails) == ["[simspool] ALERT high 0", "[simspool] ALERT high 1"]
    assert len({mail.id for mail in sink.mails}) == 2
    assert "node7" in sink.mails[0].text


def test_not_again_after_a_restart_nor_without_the_catalog(spool: Spool, sink: MailSink) -> None:
    _configured_before(spool)
    alarming(spool, alerts=3)
    sync(spool, _mail(sink))
    assert len(sink.mails) == 3
    sync(spool, _mail(sink))
    for _ in range(2):
        Path(catalog_path(spool)).unlink()
        sync(spool, _mail(sink))

    async def look(agent: Agent) -> None:
        await until(lambda: agent.notifier is not None and agent.notifier._senders)
        await until(lambda: agent.ingest.scanned and not agent.ingest.active)
        assert agent.notifier is not None
        assert agent.notifier.waiting() == 0

    serve(spool, _mail(sink), look)
    assert len(sink.mails) == 3


def test_what_was_decided_but_not_told_is_told_by_the_next_agent(spool: Spool, sink: MailSink) -> None:
    _configured_before(spool)
    run, _ = alarming(spool)
    sink.stop()
    said: list[str] = []
    sync(spool, _mail(sink), said)
    assert "1 notifications are left" in said[-1]
    assert [n["state"] for n in notifications(spool, run)] == ["failed"] * 2
    Path(catalog_path(spool)).unlink()
    sink.start()
    sync(spool, _mail(sink))
    assert len(sink.mails) == 1
    assert "Perhaps" not in sink.mails[0].text


def test_what_fails_for_a_day_is_abandoned_and_the_run_says_so(spool: Spool, sink: MailSink) -> None:
    _configured_before(spool)
    run, _ = alarming(spool)
    sink.stop()
    for _ in range(2):
        sync(spool, _mail(sink))
    with contextlib.closing(sqlite3.connect(catalog_path(spool))) as catalog, catalog:  # two days later
        assert catalog.execute("UPDATE told SET first = first - 172800000000000").rowcount == 1
    said: list[str] = []
    sync(spool, _mail(sink), said)
    assert notifications(spool, run)[-1]["state"] == "abandoned"
    shown = command("cat", run, "--kind", "event", "--json").stdout
    assert "nobody was told of alert 'high 0' (firing), tried for a day: 127.0.0.1" in json.loads(shown.splitlines()[0])["message"]
    sink.start()
    sync(spool, _mail(sink))
    assert sink.mails == []


def test_a_mail_server_that_comes_back_gets_what_waited(spool: Spool, sink: MailSink) -> None:
    sink.stop()

    async def story(agent: Agent) -> None:
        await until(lambda: agent.notifier is not None and agent.notifier._senders)
        alarming(spool, alerts=30)
        await until(lambda: agent.untold())
        sink.start()
        await until(lambda: sink.mails)
        await until(lambda: agent.notifier is not None and agent.notifier.waiting() == 0)

    serve(spool, _mail(sink), story)
    told = sink.mails
    assert sum(mail.subject.count("30 notifications") for mail in told) == 1
    assert len(told) == 1


def test_a_channel_that_hangs_holds_nothing_else_up(spool: Spool, sink: MailSink, tmp_path: Path) -> None:
    release = threading.Event()
    sink.taken = lambda _: release.wait(60)  # type: ignore[assignment, return-value]
    path = tmp_path / "alerts.jsonl"

    async def story(agent: Agent) -> None:
        await until(lambda: agent.notifier is not None and agent.notifier._senders)
        alarming(spool, alerts=2)
        await until(lambda: path.exists() and path.read_text().count("\n") == 2)
        _, writer = begin(spool, "meanwhile")
        writer.close({"status": "completed"})
        await until(lambda: agent.catalog.connection.execute("SELECT count(*) FROM runs WHERE status = 'completed'").fetchone()[0] == 2)
        assert not sink.mails

    try:
        serve(spool, {**_mail(sink), "file": str(path)}, story)
    finally:
        release.set()


@pytest.mark.parametrize(
    ("wanted", "status", "told"),
    [
        ("all", "completed", True), ("all", "failed", True), ("error", "failed", True), ("error", "terminated", True),
        ("error", "completed", False),
        ("lost", "failed", False), (None, "failed", False),
    ],
)  # fmt: skip
def test_the_end_of_a_run_is_told_to_who_wants_it(spool: Spool, sink: MailSink, wanted: str | None, status: str, told: bool) -> None:
    _configured_before(spool)
    run, writer = begin(spool, "orbit", **({"notification": wanted} if wanted else {}))
    writer.close({"status": status, "reason": "exit code 3"})
    sync(spool, _mail(sink))
    sync(spool, _mail(sink))
    assert [mail.subject for mail in sink.mails] == ([f"[simspool] {status.upper()}: orbit (exit code 3)"] if told else [])


def test_a_lost_run_is_told(spool: Spool, sink: MailSink) -> None:
    _configured_before(spool)
    run = killed(spool, points=3)
    folder = spool.run(run)
    # what `init(notification="lost")` leaves: a killed run's own first record has it

    writer = Writer(folder.writers, ids.from_text(run), durability=Durability.LAZY)
    assert writer.record(Kind.ATTACH, {"reason": "attach"})
    assert writer.record(Kind.CONFIG, {"fields": {"notification": "lost"}, "set": {}})
    writer.close({"status": None})
    sync(spool, _mail(sink))
    assert [mail.subject.split(" (")[0] for mail in sink.mails] == ["[simspool] LOST: killed"]


def test_the_end_is_told_once_by_an_agent_that_was_there(spool: Spool, sink: MailSink) -> None:
    async def story(agent: Agent) -> None:
        await until(lambda: agent.notifier is not None and agent.notifier._senders)
        _, writer = begin(spool, "orbit", notification="all")
        writer.close({"status": "completed"})
        await until(lambda: sink.mails)
        await until(lambda: agent.notifier is not None and agent.notifier.waiting() == 0)
        await until(lambda: not agent.ingest.active)  # the agent has let go of the run

    serve(spool, _mail(sink), story)
    sync(spool, _mail(sink))
    assert len(sink.mails) == 1


def test_the_past_is_not_told_to_a_new_channel(spool: Spool, sink: MailSink, tmp_path: Path) -> None:
    alarming(spool, "old", notification="all")
    sync(spool, {})
    sync(spool, _mail(sink))
    assert sink.mails == []
    alarming(spool, "new")
    sync(spool, _mail(sink) | {"file": str(tmp_path / "a.jsonl")})
    assert [mail.subject.split(": ")[1].split(" (")[0] for mail in sink.mails] == ["new"]
    assert not (tmp_path / "a.jsonl").exists()


def test_a_channel_is_there_since_its_file_was_written(spool: Spool, sink: MailSink, tmp_path: Path) -> None:
    alarming(spool, "before")
    (tmp_path / "simspool.toml").write_text(f'[notify.mail]\nto = ["me@site"]\nsmtp = "{sink.address}"\n')
    alarming(spool, "after", notification="all")
    assert command("sync").returncode == 5  # the first that this spool sees
    assert sorted(mail.subject.split(" (")[0] for mail in sink.mails) == ["[simspool] ALERT high 0: after", "[simspool] COMPLETED: after"]


def test_resolved_is_told_where_it_is_wanted(spool: Spool, sink: MailSink, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    table = {**_mail(sink), "file": {"path": str(path), "on": ["firing", "resolved"]}}

    async def story(agent: Agent) -> None:
        await until(lambda: agent.notifier is not None and agent.notifier._senders)
        _, writer = alarming(spool, close=False)
        await until(lambda: sink.mails)
        writer.metrics({"loss": -1.0}, step=2)
        n = [3]

        def gone() -> bool:
            writer.metrics({"loss": -1.0}, step=n[0])
            n[0] += 1
            return path.exists() and '"resolved"' in path.read_text()

        await until(gone)
        writer.close({"status": "completed"})

    serve(spool, table, story)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["firing", "resolved"]
    assert len(sink.mails) == 1


def test_a_new_configuration_counts_from_then_on(spool: Spool, sink: MailSink) -> None:
    table, said = {"terminal": True}, []

    async def story(agent: Agent) -> None:
        assert agent.notifier is not None
        notifier = agent.notifier
        await until(lambda: list(notifier._senders) == ["terminal"])
        table.clear()
        table.update(_mail(sink))
        notifier.reload()
        await until(lambda: list(notifier._senders) == ["mail"])
        alarming(spool)
        await until(lambda: sink.mails)

    serve(spool, table, story, said)
    assert not any(text.startswith("ALERT") for text in said)


def test_a_deleted_run_is_forgotten(spool: Spool, sink: MailSink) -> None:
    sink.stop()

    async def story(agent: Agent) -> None:
        assert agent.notifier is not None
        notifier = agent.notifier
        await until(lambda: notifier._senders)
        run, _ = alarming(spool)
        await until(lambda: agent.untold())

        def gone() -> bool:
            shutil.rmtree(spool.run(run).path, ignore_errors=True)  # the agent may just be noting something there
            return notifier.waiting() == 0

        await until(gone)

    serve(spool, _mail(sink), story)


def test_status_and_test_say_how_the_channels_do(spool: Spool, sink: MailSink, tmp_path: Path) -> None:
    _configured_before(spool)
    (tmp_path / "simspool.toml").write_text(f'[notify]\nterminal = true\n[notify.mail]\nto = ["me@site"]\nsmtp = "{sink.address}"\n')
    done = command("notify", "test", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [(f["channel"], f["delivered"]) for f in found]) == (0, [("terminal", True), ("mail", True)])
    assert sink.mails[0].subject == "[simspool] TEST: notifications reach you"
    alarming(spool)
    sink.stop()
    assert command("sync").returncode == 5
    done = command("status", "--json")
    assert json.loads(done.stdout)["notifications"]["mail"]["pending"] == 1
    assert "1 pending: 127.0.0.1" in command("status").stdout
    done = command("notify", "test", "--channel", "mail")
    assert done.returncode == 1
    assert "mail: not delivered: 127.0.0.1" in done.stdout
    assert command("notify", "test", "--channel", "pigeon").returncode == 2
    (tmp_path / "simspool.toml").write_text("[notify]\ncolour = 1\n")
    for verb in (("notify", "test"), ("run",)):
        done = command(*verb)
        assert (done.returncode, "there is no key 'colour'" in done.stderr) == (2, True)
