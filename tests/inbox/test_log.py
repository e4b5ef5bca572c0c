"""`agent log` from real shells: a run that ends with the script, lines of many jobs at a time, clear words for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inbox_records import copied
from real_server import RealServer, agent

from simspool.agent.inbox import append as appending
from simspool.agent.inbox.inboxes import Inboxes
from simspool.spool import Kind, Spool, Tail
from simspool.spool.frames import Record


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`agent` on the path of shells."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "agent").write_text(f'#!/bin/sh\nexec {sys.executable} -W error -m simspool.agent "$@"\n')
    (tmp_path / "bin" / "agent").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def shell(script: str, *, program: str = "bash") -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return subprocess.run([program, "-c", script], capture_output=True, text=True, timeout=100)


def lines(spool: Spool, run: str) -> list[tuple[Kind, dict[str, object]]]:
    """Copy what there is; return it."""
    inboxes = Inboxes(spool, set, lambda _: None)
    inboxes.copy_all()
    inboxes.stop()
    return [(one.kind, one.body) for one in copied(spool, run)]


@pytest.mark.usefixtures("command")
def test_a_script_records_itself(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("result\n")
    done = shell(
        'eval "$(agent log run --export --name shelly --folder /shells --tag a --meta cells=64 --meta solver=heat)" || exit 9\n'
        "agent log metric loss=0.5 acc=.9\n"
        "agent log metric loss=1D-3 --step 7 --time 2.5\n"
        "agent log event 'it \"goes\" on' --level warning\n"
        "agent log event 'quick'\n"
        f"agent log file {tmp_path}/out.txt --category input --name result.txt; echo changed > {tmp_path}/out.txt\n"
        "agent log meta cells=128 converged=true; agent log tag b c\n"
        "agent log alert broken critical; agent log alert broken ok\n"
        'echo \'{"metrics": {"loss": nan}}\' >> "$SIMSPOOL_INBOX/own.jsonl"\n'
        "(exit 3); agent log end --code $?\n",
        program="sh",
    )
    assert (done.returncode, done.stderr) == (0, "")
    agent("sync", env=server.environment, check=True)
    (run,) = spool.run_ids()
    found = server.get(f"/runs/{run}")
    assert (found["name"], found["folder"], found["status"]) == ("shelly", "/shells", "failed")
    assert found["tags"] == ["a", "b", "c"]
    assert {k: found["metadata"][k] for k in ("cells", "solver", "converged")} == {"cells": 128, "solver": "heat", "converged": True}
    points = server.points(run, "loss")
    assert [(step, value) for step, value in points if value == value and value is not None][:2] == [(0, 0.5), (7, 0.001)]
    assert len(points) == 3
    assert server.events(run)[:2] == ['it "goes" on', "quick"]
    folder = spool.run(run)
    (body,) = (body for kind, body in lines(spool, run) if kind == Kind.ARTIFACT)
    assert (body["name"], body["category"]) == ("result.txt", "input")
    assert Path(folder.blobs, str(body["digest"])).read_text() == "result\n", "the content is that of the call"


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("inside", ["{}", "( {} )", "true | {}", 'x=$( {} ); eval "$x"; true'])
def test_a_run_stands_for_the_shell_also_out_of_subshells(spool: Spool, inside: str) -> None:
    done = shell("echo $$; " + inside.format("agent log run --name who") + "; exit 5")
    pid = int(done.stdout.split()[0])
    (run,) = spool.run_ids()
    folder = spool.run(run)
    (writer,) = folder.writer_ids()
    with Tail(folder.writer(writer), run) as tail:
        (chunk,) = tail.read()
    first = chunk.items[0]
    assert isinstance(first, Record)
    assert (chunk.header.pid, (first.body or {})["proxy"]) == (pid, True)


@pytest.mark.usefixtures("command")
def test_many_jobs_append_at_once_and_each_line_is_whole(spool: Spool) -> None:
    jobs = 12
    done = shell(
        'eval "$(agent log run --export)"\n'
        "long=$(printf 'x%.0s' $(seq 9000))\n"
        f'for i in $(seq {jobs}); do (agent log metric job=$i && agent log event "job $i $long" || echo bad) & done; wait'
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run,) = spool.run_ids()
    found = lines(spool, run)
    assert sorted(body["values"]["job"] for kind, body in found if kind == Kind.METRICS) == list(range(1, jobs + 1))  # type: ignore[index]
    assert sorted(int(str(body["message"]).split()[1]) for kind, body in found if kind == Kind.EVENT) == list(range(1, jobs + 1))


def test_what_is_wrong_is_said_and_nothing_is_recorded(spool: Spool, tmp_path: Path) -> None:
    run = agent("log", "run", "--pid", str(os.getpid()), check=True).stdout.strip()
    for arguments, code, words in [
        (("metric", "loss=high"), 2, "must be a number"), (("metric", "loss"), 2, "NAME=VALUE"), (("metric", "a,b=1"), 2, "a,b"),
        (("metric", "loss=1", "--step", "-1"), 2, "--step"), (("event", "x", "--level", "loud"), 2, "level"), (("end",), 2, "--code"),
        (("end", "--code", "1", "--status", "failed"), 2, "--code"), (("file", str(tmp_path / "gone")), 2, "gone"),
        (("file", str(tmp_path)), 2, "folder"), (("tag", ""), 2, "tag"), (("alert", "a,b", "ok"), 2, "a,b"),
        (("meta", "=1"), 2, "NAME=VALUE"),
    ]:  # fmt: skip
        done = agent("log", *arguments, "--run", run)
        assert (done.returncode, words in done.stderr) == (code, True), (arguments, done.stderr)
    assert "Traceback" not in done.stderr
    assert lines(spool, run) == []
    done = agent("log", "metric", "x=1")
    assert done.returncode == 2
    assert "SIMSPOOL_RUN" in done.stderr
    assert agent("log", "metric", "x=1", "--run", "nobody").returncode == 9
    assert agent("log", "run", "--pid", "4194304").returncode == 2
    assert agent("log", "run", "--folder", "x").returncode == 2
    assert len(spool.run_ids()) == 1


def test_json_says_where_it_went(spool: Spool) -> None:
    begun = json.loads(agent("log", "run", "--pid", str(os.getpid()), "--json", check=True).stdout)
    assert begun == {"run": spool.run_ids()[0], "inbox": spool.run(begun["run"]).inbox, "spool": spool.path}
    said = json.loads(agent("log", "tag", "a", "--run", begun["run"], "--json", check=True).stdout)
    assert (said["run"], said["line"]) == (begun["run"], {"tags": ["a"]})
    assert Path(said["file"]).read_text() == '{"tags": ["a"]}\n'


def test_a_line_that_was_cut_off_is_closed_before_the_next(tmp_path: Path) -> None:
    path = Path(appending.append(str(tmp_path), {"event": "one"}))
    with path.open("a") as f:
        f.write('{"event": "tw')
    appending.append(str(tmp_path), {"event": "three"})
    assert path.read_text().splitlines() == ['{"event": "one"}', '{"event": "tw', '{"event": "three"}']


PLAIN: dict[str, dict[str, object] | None] = {
    "metric a=1 b=.5": {"metrics": {"a": 1, "b": 0.5}}, "metric a=1 --step 3": {"metrics": {"a": 1}, "step": 3},
    "event hello": {"event": "hello"}, "event a --level error": {"event": "a", "level": "error"}, "": None, "tag a": None,
    **dict.fromkeys(("metric", "metric a=1D3", "metric --step 3", "metric a=1 --step", "metric a=1 --step -3"), None),
    "metric a=1 --time 3": None,
    **dict.fromkeys(("event", "event --help", "event a b", "event a --level", "event a --level loud"), None),
}  # fmt: skip


@pytest.mark.parametrize(("words", "line"), PLAIN.items())
def test_the_short_way_does_the_plain_cases_and_leaves_the_others(tmp_path: Path, words: str, line: dict[str, object] | None) -> None:
    given = words.split()
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    environ = {"SIMSPOOL_INBOX": str(inbox)}
    assert appending.quick(given, environ) == (line is not None)
    written = [json.loads(text) for path in inbox.iterdir() for text in path.read_text().splitlines()]
    assert [{k: v for k, v in one.items() if k not in {"timestamp", "time"}} for one in written] == ([line] if line else [])
    assert not appending.quick(given, environ | {"SIMSPOOL_RUN": "another"})
    assert not appending.quick(given, {})
    assert not appending.quick(given, {"SIMSPOOL_INBOX": str(tmp_path / "gone")})
