"""A1: names and texts that look like paths, options or terminal sequences are only names, in every output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from command import Command
from real_server import RealServer, agent

from simspool.agent.exit_codes import ExitCode
from simspool.sdk import Client
from simspool.sdk.errors import UnsafeName
from simspool.spool import Kind, Spool, Writer, blobs, ids

NAMES = [
    "../x", "a/../../x", "/etc/passwd", "C:\\x", "\\\\host\\x", "-rf", "~", "x" * 200, "e\u0301", "\u00e9", "Twin", "twin", "\u202etxt.exe",
    "CON", "dot. ", "..", "a b", "%2e%2e", "$(id)", "`id`", ";id",
]  # fmt: skip
STEERING = "evil\x1b]0;owned\x07\x1b[2J\r\u009b31m\u202e\u2028name"
_STEERS = {"Cc", "Cf", "Zl", "Zp"}


def begin(spool: Spool, **fields: object) -> tuple[str, Writer]:
    """Begin a run as a hostile script would: with the writer itself, which checks no names."""
    raw = ids.new_id()
    folder = spool.run(ids.to_text(raw))
    os.makedirs(folder.writers)
    writer = Writer(folder.writers, raw)
    body = {"name": STEERING, "folder": f"/{STEERING}", "status": "running", "tags": [STEERING], "metadata": {STEERING: STEERING}, **fields}
    assert writer.record(Kind.RUN, body)
    return folder.id, writer


def save(spool: Spool, run: str, writer: Writer, name: str, data: bytes) -> str:
    blob = blobs.put_bytes(spool, spool.run(run), data)
    body = {"name": name, "category": "output", "digest": blob.digest, "size": blob.size, "mime": "text/plain", "path": name}
    assert writer.record(Kind.ARTIFACT, body)
    return blob.digest


def steers(text: str) -> list[str]:
    return [hex(ord(c)) for c in text if c not in "\n\t" and unicodedata.category(c) in _STEERS]


def test_a01_names_never_become_paths(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    run, writer = begin(spool, name="names")
    digests = {save(spool, run, writer, name, f"content of {n}".encode()) for n, name in enumerate(NAMES)}
    assert writer.close({"status": "completed"})
    before = {p for p in tmp_path.rglob("*") if spool.path not in str(p)}
    done = agent("sync", "--json", env=server.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {p.name for p in Path(spool.run(run).blobs).iterdir()} | {p.name for p in Path(spool.pool).rglob("*") if p.is_file()}
    assert names == digests, "on disk there are digests only"
    assert digests <= {p.name for p in (server.data / "blobs").rglob("*")}
    client = Client(server_url=server.url, server_token=server.token)
    assert {a["name"] for a in client.list_artifacts(run)} == set(NAMES), "names are kept as they are, twins too"
    after = {p for p in tmp_path.rglob("*") if spool.path not in str(p)} - before
    assert not {p for p in after if p.name in {"x", "passwd", "twin", "CON"}}

    target = tmp_path / "down" / "here"
    target.mkdir(parents=True)
    refused = 0
    for name in NAMES:
        try:
            path = Path(client.get_artifact_as_file(run, name, target))
        except UnsafeName:
            refused += 1
        else:
            assert path.is_relative_to(target.resolve())
            assert path.is_file()
    assert refused == NAMES.count("..")
    assert {p.name for p in tmp_path.iterdir()} >= {"down"}
    assert [p.name for p in (tmp_path / "down").iterdir()] == ["here"]


def test_a01_no_command_lets_a_name_steer_the_terminal(
    spool: Spool, server: RealServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    command = Command(capsys)
    run, writer = begin(spool)
    assert writer.metrics({STEERING: 1.0}, step=1)
    assert writer.record(Kind.EVENT, {"message": STEERING, "level": STEERING})
    assert writer.record(Kind.ALERT, {"id": "01" * 16, "name": STEERING, "source": "user", "abort": False, "notification": STEERING,
    "alert": {}})
    assert writer.record(Kind.ALERT_STATE, {"id": "01" * 16, "alert": STEERING, "state": "critical"})
    assert writer.record(Kind.PROCESS_START, {"pid": 5, "identifier": STEERING, "command": STEERING, "host": STEERING})
    save(spool, run, writer, STEERING, b"x")
    assert writer.record(Kind.ARTIFACT, {"name": STEERING, "digest": STEERING, "size": -1})
    assert writer.record(Kind.STATUS, {"status": "failed", "reason": STEERING})
    assert writer.close({"status": "failed", "reason": STEERING})
    assert command("sync") in {0, ExitCode.REFUSED}, "what no server takes is refused, the rest is there"
    commands = [
        ["ls"], ["status"], ["show", run], ["cat", run], ["check"], ["alerts", "ls", run], ["alerts", "replay", run], ["verify", run],
        ["dead"],
        ["sync"], ["show", STEERING], ["cat", STEERING], ["abort", STEERING], ["sync", STEERING], ["sync", "--where", STEERING],
        ["target", "add", STEERING, "simvue", "http://127.0.0.1:9"], ["target", "add", "a", "simvue", STEERING], ["log", "metric",
        STEERING],
        ["log", "event", "--run", STEERING, "m"], [STEERING], ["ls", STEERING], ["ls", f"--{STEERING}"], ["sync", "--timeout", STEERING],
        ["exec", "--metric", f"({STEERING}", "--", "true"], ["exec", "--", f"/nonexistent/{STEERING}"], ["serve", "--data",
        f"/proc/{STEERING}"],
        ["alerts", "check", f"/nonexistent/{STEERING}"], ["--spool", STEERING],
    ]  # fmt: skip
    bad = {}
    for words in commands:
        for form in ([], ["--json"]):
            if words[0] == "exec":  # a process of its own: it blocks signals for good
                done = agent(*words)
                code, out, err = done.returncode, done.stdout, done.stderr
            else:
                code = command(*words, *form)
                out, err = command.out, command.err
            found = steers(out) + steers(err)
            if found or "Traceback" in err or "SIMSPOOL_DEBUG" in err:
                bad[" ".join(map(ascii, words))] = (found, err[-500:])
            if form and code == 0 and words[0] != "exec":
                for line in out.splitlines():
                    json.loads(line)
    assert not bad


def test_a01_the_agents_log_and_the_sdks_line_are_safe_too(spool: Spool, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / STEERING.replace("/", "_"))
    script = (
        "import sys\nfrom simspool.sdk import Run\n"
        "run = Run(mode='offline'); run.init('x'); print(run.save_directory(sys.argv[1], 'output')); run.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[0] == "False", done.stderr
    assert "\\x1b" in done.stderr, "the file is named"
    assert not steers(done.stderr)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\u202e", "\ud800", "ok ü"])
def test_a01_a_line_of_the_sdk_begins_no_second_one(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from simspool.sdk.notice import say

    say(text)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("simspool: ")
    assert all(line.startswith("  ") for line in others)
    assert not any(map(steers, [first, *others]))
    shown = "".join([first, *others])
    assert ("ü" in shown) == ("ü" in text)
