"""A14 to A18: nothing is executed, everything is bounded, whatever the bytes say."""

from __future__ import annotations

import ast
import contextlib
import json
import sqlite3
import struct
import urllib.error
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from command import Command
from real_server import RealServer, agent
from recorded import whole

import simspool.agent
from simspool.agent.alerts.rules import InvalidRule, message_matcher, parse_rule
from simspool.agent.inbox.lenient import NotUnderstood, parse
from simspool.agent.lines.patterns import Patterns
from simspool.spool import InvalidRecord, Kind, Spool, Tail, Writer, alert_definition, frames, ids, layout, records, segment_header

ROOT = Path(simspool.agent.__path__[0]).parent
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
OURS = {"exec('raise KeyboardInterrupt')"}  # has the interpreter exit by SIGINT: see sdk/recording.py
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "apscheduler.jobstores"}


def sources() -> list[Path]:
    return [p for room in ("spool", "sdk", "agent") for p in (ROOT / room).rglob("*.py")]


def found_in(path: Path) -> set[str]:
    """Return what of a module runs text or bytes as code, or unpacks objects."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS and ast.unparse(node) not in OURS:
            out.add(node.func.id)
        words = node.keywords if isinstance(node, ast.Call) else []
        if any(k.arg == "shell" and not (isinstance(k.value,
        ast.Constant) and not k.value.value) for k in words):
            out.add("shell=")
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node,
        ast.ImportFrom) else []
        out |= {n for n in names if n in MODULES or n.split(".")[0] in MODULES or any(n.startswith(f"{m}.") for m in MODULES)}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in {("os", "system"), ("os",
        "popen")}:
            out.add(f"os.{node.attr}")
    return out


def test_a14_nothing_runs_text_or_unpickles() -> None:
    found = {str(p.relative_to(ROOT)): names for p in sources() if (names := found_in(p))}
    assert found == {"sdk/artifacts.py": {"pickle"}}, "there, and only where the caller says allow_pickle"


def test_a14_the_gate_sees(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    lines = ["import pickle, os", "from apscheduler.jobstores import sqlalchemy", "os.system('x')", "subprocess.run('x', shell=True)",
    "eval('1')"]
    bad.write_text("\n".join(lines))
    assert found_in(bad) == {"pickle", "apscheduler.jobstores", "os.system", "shell=", "eval"}


def a_segment(spool: Spool, *parts: bytes) -> tuple[str, str]:
    """Put a hand-made segment into a run; returns the run and the writer's folder."""
    raw = ids.new_id()
    run = ids.to_text(raw)
    folder = spool.run(run)
    Path(folder.writers).mkdir(parents=True)
    writer = Writer(folder.writers, raw)
    assert writer.record(Kind.RUN, {"name": "hostile", "status": "running", "folder": "/", "metadata": {}, "tags": []})
    assert writer.close({"status": "completed"})
    (file,) = layout.segments(folder.writer(writer.id_text))
    data = Path(file.path).read_bytes()
    Path(file.path).chmod(0o600)
    Path(file.path).write_bytes(data + b"".join(parts))
    return run, folder.writer(writer.id_text)


@pytest.mark.parametrize("length", [0, 1, 31, 33, (1 << 20) + 8, 0x7FFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF])
def test_a15_a_frame_that_lies_about_its_length(spool: Spool, length: int) -> None:
    _, folder = a_segment(spool, struct.pack("<HBBIQq", frames.MARKER, 18, 0, length, 9, 9) + b"x" * 100)
    with Tail(folder, Path(folder).parents[1].name) as tail:
        read = [item for chunk in tail.read(dead=True) for item in chunk.items]
    assert len(read) == 2
    assert frames.decode(struct.pack("<HBBIQq", frames.MARKER, 18, 0, length, 9, 9) + b"x" * 100, 0, {}).end == 0


HOSTILE = [
    b"[" * 500_000, b'{"a":' * 100_000, b"1" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1e999}', b'{"a": NaN}', b'{"a": Infinity}',
    b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b"\xff", b"null", b'{"a": 123456789012345678901234567890}',
]  # fmt: skip


@pytest.mark.parametrize("payload", HOSTILE, ids=[ascii(p[:20]) for p in HOSTILE])
def test_a15_hostile_json_is_a_value_or_a_documented_error(payload: bytes) -> None:
    for read in (records.decode, parse):
        try:
            assert isinstance(read(payload), dict)
        except (ValueError, NotUnderstood):
            continue


def test_a15_no_record_stops_the_agent_or_the_others(spool: Spool, server: RealServer) -> None:
    """Bodies that nobody expects, of every kind; what makes no sense is refused by name, and the rest and the neighbours arrive."""
    odd: list[Any] = [None, [], {}, "x" * 5000, "\ud800", -1, 1 << 70, 1.5, True, ["a", {}], {"a": []}, {"$float": "nan"},
    "../../../etc/passwd"]
    raw = ids.new_id()
    folder = spool.run(ids.to_text(raw))
    Path(folder.writers).mkdir(parents=True)
    writer = Writer(folder.writers, raw)
    keys = (
        "name", "status", "folder", "metadata", "tags", "message", "level", "timestamp", "digest", "size", "mime", "category", "path",
        "set", "op",
        "state", "alert", "id", "source", "notification", "abort", "values", "step", "time", "watched", "at", "reason", "elsewhere",
        "file", "offset",
        "pid", "start_ticks", "identifier", "code", "writer", "channel", "attempt", "fields", "rank", "by", "writers",
    )  # fmt: skip
    wrote = 0
    for kind in [k for k in Kind if 8 <= k < 48 and k not in {Kind.METRICS, Kind.RESOURCES, Kind.CLOSE}]:
        for value in odd:
            wrote += writer.record(kind, dict.fromkeys(keys, value))
        wrote += writer.record(kind, {})
    assert writer.close({"status": "completed"})
    good = whole(spool, "neighbour")
    done = agent("sync", "--json", "--timeout", "90", env=server.environment, timeout=150)
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode in {0, 4}, (last, done.stderr)
    assert len(server.points(good, "loss")) == 100
    for command in (["ls"], ["show", folder.id], ["cat", folder.id], ["check"], ["status"], ["alerts", "list"], ["dead"]):
        done = agent(*command, "--json", env=server.environment)
        assert "SIMSPOOL_DEBUG" not in done.stderr, (command, done.stderr[-500:])
    assert wrote > 200


def test_a15_a_digest_that_is_a_path_reads_and_deletes_nothing(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not for the server")
    run, writer = begin_hostile(spool)
    digests = [str(secret), "../" * 8 + str(secret)[1:], "a" * 63, "A" * 64, "", "é" * 64]
    for n, digest in enumerate(digests):
        assert writer.record(Kind.ARTIFACT, {"name": f"a{n}", "category": "output", "digest": digest, "size": secret.stat().st_size,
        "mime": "text/plain"})
    assert writer.close({"status": "completed"})
    good = whole(spool, "neighbour")
    target = tmp_path / "target"
    target.mkdir()
    assert agent("target", "add", "folder", "directory", str(target)).returncode == 0
    done = agent("sync", "--json", "--timeout", "60", env=server.environment)
    assert done.returncode in {0, 4}, done.stdout + done.stderr
    assert len(server.points(good, "loss")) == 100
    assert secret.read_text() == "not for the server"
    for place in (server.data, target, Path(spool.path)):
        assert not [p for p in place.rglob("*") if p.is_file() and b"not for the server" in p.read_bytes()]
    assert run


def begin_hostile(spool: Spool) -> tuple[str, Writer]:
    raw = ids.new_id()
    folder = spool.run(ids.to_text(raw))
    Path(folder.writers).mkdir(parents=True)
    writer = Writer(folder.writers, raw)
    assert writer.record(Kind.RUN, {"name": "hostile", "status": "running", "folder": "/", "metadata": {}, "tags": []})
    return folder.id, writer


def test_a16_an_answer_that_is_a_bomb_is_cut_off(tmp_path: Path) -> None:
    """See test_hostile_server for answers; a segment is never decompressed: what looks like a bomb in one is bytes."""
    bomb = zstandard.compress(bytes(64 << 20))
    assert len(bomb) < 1 << 16
    assert frames.decode(bomb, 0, {}).end == 0
    header = zlib.crc32(bomb)
    with pytest.raises(Exception, match="magic"):
        segment_header.SegmentHeader.unpack(bomb.ljust(256, b"\0"))
    assert header


EVIL = ["(a+)+$", "(a|aa)+$", "(.*)*x", "([a-zA-Z]+)*!", "(a{1,100}){1,100}", "^(([a-z])+.)+[A-Z]([a-z])+$"]


@pytest.mark.parametrize("expression", EVIL)
def test_a17_no_expression_takes_for_ever(expression: str) -> None:
    """Events, lines of commands and names of metrics: RE2, or Python's atomic groups; a backtracking engine would take years for these."""
    text = "a" * 20_000 + "\n"
    for search in (lambda: message_matcher(f"re:{expression}")(text), lambda: list(Patterns(events=[expression]).scan(text.encode()))):
        with contextlib.suppress(InvalidRule, InvalidRecord):  # one that RE2 would need too much memory for
            search()
    stars = alert_definition.define("n", "metrics", rule="is not finite", metric="*a" * 200 + "b")
    assert not parse_rule(stars).matcher()("a" * 1000)


@pytest.mark.parametrize("text", ["__import__('os').system('id')", "().__class__", "1 and exec('x')", "%(x)s (", "x\ny",
"lambda: 1"])
def test_a17_expressions_are_no_python(text: str) -> None:
    for given in ({"source": "alerts", "when": text}, {"source": "metrics", "rule": "is above", "metric": "x", "threshold": text}):
        with pytest.raises(InvalidRecord):
            alert_definition.define("n", given.pop("source"), **given)


SQL = ["x'; DROP TABLE runs; --", 'x"; DROP TABLE runs; --', "x`", "[x]", "x; ATTACH DATABASE '/tmp/y' AS y", "rowid", "*", "%", "\\'"]


def test_a18_names_never_become_sql(spool: Spool, server: RealServer, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(capsys)
    raw = ids.new_id()
    folder = spool.run(ids.to_text(raw))
    Path(folder.writers).mkdir(parents=True)
    writer = Writer(folder.writers, raw)
    for text in SQL:
        assert writer.record(Kind.RUN, {"name": text, "folder": f"/{text}", "status": "running", "tags": [text], "metadata": {text: text}})
        assert writer.metrics({text: 1.0}, step=1)
        assert writer.record(Kind.EVENT, {"message": text, "level": text})
    assert writer.close({"status": "completed"})
    assert agent("sync", env=server.environment).returncode == 0
    for text in SQL:
        for words in (["ls", "--where", f"name={text}"], ["sync", "--tag", text], ["show", text]):
            command(*words)
            assert "SIMSPOOL_DEBUG" not in command.err
            assert "SQLite" not in command.err
        for condition in (f"name == {text}", f"metadata.{text} == {text}", f"has tag.{text}"):
            with contextlib.suppress(urllib.error.HTTPError):  # a condition that is none: 422
                server.get("/runs", filters=[condition])
    assert {name for name in SQL if server.points(folder.id, name)} == set(SQL)
    with sqlite3.connect(server.data / "server.db") as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone()[0] > 0
    db.close()
