"""What the fuzz command feeds values to: answers of servers, lines of inboxes, receipts, alerts, settings. JSON and TOML, changed."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import urllib.error
from email.message import Message
from pathlib import Path
from random import Random
from typing import Any

import mutations

from simspool.agent.alerts import site
from simspool.agent.alerts.rules import InvalidRule, parse_rule
from simspool.agent.execute.conditions import parse as parse_condition
from simspool.agent.inbox.lenient import NotUnderstood
from simspool.agent.inbox.lines import Metrics, Reader
from simspool.agent.lines.patterns import Patterns
from simspool.agent.notify import settings as notify_settings
from simspool.agent.targets import mlflow_api, port, settings, simvue_api
from simspool.agent.targets.embedded import EmbeddedTarget
from simspool.agent.targets.http import Answer
from simspool.agent.targets.port import File, Range
from simspool.sdk.client import Client
from simspool.sdk.config import load_config
from simspool.sdk.errors import SdkError
from simspool.sdk.server_source import ServerSource
from simspool.spool import InvalidRecord, alert_definition, alert_expression, control, ids, open_spool, run_filter
from simspool.spool.errors import SpoolError

RUN, WRITER, DIGEST = "0351kCGS8SuAkzniyGMTpR", "0351kCGSr8BR5tWlzOy3LX", "ab" * 32
_FILE = File(DIGEST, DIGEST, 3, RUN, WRITER, 1, "name", "output", "text/plain")
_RANGE = Range(RUN, WRITER, 1, 10, b"x" * 50, 77, 1, 2000)
_RUN_THERE = {
    "id": RUN, "name": "n", "status": "running", "folder": "/", "tags": ["t"], "metadata": {"simspool.run": RUN},
    "created": "2026-01-01T00:00:00.0",
    "metrics": {"loss": {"count": 3, "min": 1, "max": 2, "last": 1}}, "system": {}, "visibility": {"public": False},
    "alerts": [{"alert": {"id": "a", "name": "hot", "source": "user", "notification": "none", "abort": False, "alert": {"when": "x"}},
                "status": {"current": "critical", "since": "2026-01-01T00:00:00.0", "reason": "r"}}],
}  # fmt: skip
_MLRUN = {
    "info": {"run_id": "r", "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/r/artifacts", "run_name": "n", "status": "RUNNING",
             "end_time": "5", "lifecycle_stage": "active"},
    "data": {"params": [{"key": "p", "value": "1"}], "tags": [{"key": "t", "value": "v"}], "metrics": [{"key": "loss", "value": 1.0}]},
}  # fmt: skip
_EXPERIMENT = {"experiment": {"experiment_id": "1", "lifecycle_stage": "active", "tags": [{"key": "simspool.target", "value": "x"}]}}
_RECOUNT = {
    "metrics": {"loss": {"count": 3, "first": [0, 1.0], "last": [2, 2.0]}}, "files": [{"name": "a", "digest": DIGEST, "there": True}],
    "marks": {WRITER: 5}, "events": 2, "status": "completed",
}  # fmt: skip


class ServerAnswerSubject:
    """Every client's reading of what a server says: the drains to the embedded server, Simvue and MLflow, and the SDK's Client."""

    documented = (port.Unreachable, port.Refused, port.TooLarge, port.NotNow, port.Poison, simvue_api.Rejected, mlflow_api.Rejected,
    SdkError,
                  SpoolError)  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open())
        self._client = Client.__new__(Client)
        self._source = ServerSource("http://127.0.0.1:9", "token")
        self._client._source = self._source
        self._source._open = self._answer  # type: ignore[method-assign]
        self._given: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self._asked = 0
        self._calls = self._made()

    async def _open(self) -> None:
        self._embedded = EmbeddedTarget("http://127.0.0.1:9", "token")
        self._simvue = simvue_api.Api("http://127.0.0.1:9", "token", None, 60.0)
        self._mlflow = mlflow_api.Api("http://127.0.0.1:9", "experiment", None, None)
        for caller in (self._embedded._http, self._simvue._http, self._mlflow._http, self._mlflow._bulk):
            caller._exchange = self._exchange  # type: ignore[method-assign]

    async def _exchange(self, *_: Any, **__: Any) -> Answer:
        self._asked += 1
        if self._asked > 50:
            raise port.Unreachable("enough")
        return Answer(*self._given)

    def _answer(self, *_: Any) -> Any:
        """What urllib gives for the answer; after some of them, the server is gone."""
        status, _headers, body = self._given
        self._asked += 1
        if self._asked > 50:
            raise SdkError("enough")
        if status >= 400:
            from simspool.sdk.errors import ServerError
            from simspool.sdk.server_source import _explain

            error = urllib.error.HTTPError("http://x", status, "reason", Message(), io.BytesIO(body))
            with error:
                raise ServerError(_explain(error, "http://x"), status)
        return io.BytesIO(body)

    def _made(self) -> tuple[tuple[str, Any, Any], ...]:
        """Return (name, a good answer, what is done with it)."""
        e, s, m, c = self._embedded, self._simvue, self._mlflow, self._client
        verdict = {"writer": WRITER, "verdict": "accepted", "mark": 10, "chain": 77, "refused": [[3, "bad"]], "reason": "x", "taken": [3]}
        artifact = {"name": "a", "checksum": DIGEST, "size": 3, "url": "/api/objects/get/x", "mime_type": "application/json",
        "category": "output"}
        points = {RUN: {"loss": [{"step": 1, "time": 1.0, "timestamp": "t", "value": 2.0}]}}
        averages = {"loss": [{"step": 1, "average": 1.0, "min": 1, "max": 1, "std": 0, "count": 1}]}
        data = {"data": [_RUN_THERE], "count": 1}
        return (
            ("embedded connect", {"server": "id", "protocol": 1, "version": "1", "limits": {"body": 1 << 20, "ranges": 9, "parts": 4,
            "blob": 5}},
             e.connect),
            ("embedded send", {"server": "id", "ranges": [verdict]}, lambda: e.send([_RANGE])),
            ("embedded marks", {"marks": {WRITER: [5, 7]}}, lambda: e.marks([(RUN, WRITER)])),
            ("embedded recount", {"runs": {RUN: _RECOUNT}}, lambda: e.recount(RUN)),
            ("embedded missing", {"missing": [DIGEST]}, lambda: e.missing([_FILE])),
            ("embedded heartbeat", {"abort": {RUN: {"id": "1" * 32, "reason": "r"}}}, lambda: e.heartbeat({RUN: 1.0})),
            ("simvue connect", {"version": "1.2.16", "tenant": {"name": "t"}, "username": "u"}, s.connect),
            ("simvue run", _RUN_THERE, lambda: s.run(RUN)), ("simvue find", data, lambda: s.find(RUN)),
            ("simvue create", {"id": "x"}, lambda: s.create_run({})), ("simvue events", {"data": [{}], "count": 3},
            lambda: s.count_events(RUN, exact=True)),
            ("simvue points", points, lambda: s.points(RUN, "loss")), ("simvue artifacts", [artifact], lambda: s.artifacts(RUN)),
            ("simvue announce", {"id": "x", "url": "http://x/y"}, lambda: s.announce({})), ("simvue beat", {"status": True},
            lambda: s.beat(RUN)),
            ("simvue post", {"detail": [{"loc": ["body", "metrics", 0, "x"], "msg": "bad"}]}, lambda: s.post("metrics", RUN, [])),
            ("mlflow connect", _EXPERIMENT, m.connect), ("mlflow run", {"run": _MLRUN}, lambda: m.run("r")),
            ("mlflow find", {"runs": [_MLRUN]}, lambda: m.find("k", "v")), ("mlflow create", {"run": _MLRUN}, lambda: m.create("n", 1, {})),
            ("mlflow history", {"metrics": [{"step": 1, "value": 2.0}], "next_page_token": "t"}, lambda: m.history("r", "loss")),
            ("mlflow listed", {"files": [{"path": "a", "is_dir": False, "file_size": "5"}]}, lambda: m.listed("f")),
            ("mlflow error", {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}, lambda: m.update("r", "FINISHED", 5, "n")),
            ("client run", _RUN_THERE, lambda: c.get_run(RUN)), ("client runs", data, c.get_runs), ("client find", data,
            lambda: c.get_run("01")),
            ("client name", {"data": [{"id": RUN, "name": "n"}]}, lambda: c.get_run_id_from_name("n")),
            ("client names", ["loss"], lambda: c.get_metrics_names(RUN)),
            ("client events", {"data": [{"message": "m", "timestamp": "t", "log_level": "info"}]}, lambda: c.get_events(RUN)),
            ("client alerts", _RUN_THERE, lambda: c.get_alerts(RUN, names_only=False)),
            ("client gaps", {"gaps": [{"writer": WRITER, "first": 1, "last": 2, "reason": "lost"}]}, lambda: c.get_gaps(RUN)),
            ("client values", points, lambda: c.get_metric_values(["loss"], run_ids=[RUN])),
            ("client averages", averages, lambda: c.get_metric_values(["loss"], run_ids=[RUN], aggregate=True)),
            ("client artifacts", [artifact], lambda: c.list_artifacts(RUN)), ("client artifact", [artifact], lambda: c.get_artifact(RUN,
            "a")),
        )  # fmt: skip

    def make(self, random: Random) -> tuple[int, int, bytes]:
        """Return (which question, the status, the answer's body)."""
        which = random.randrange(len(self._calls))
        value = mutations.of_value(random, self._calls[which][1], most=3)
        body = mutations.as_json(value)
        if random.random() < 0.15:
            body = mutations.of_bytes(random, body, most=3)
        status = 200 if random.random() < 0.75 else random.choice((201, 400, 401, 404, 409, 413, 415, 422, 429, 500, 302, 999))
        return which, status, body

    def run(self, given: tuple[int, int, bytes]) -> str:
        """Ask; the answer is taken or refused."""
        which, status, body = given
        self._given, self._asked = (status, {"Retry-After": body[:20].decode("latin-1")}, body), 0
        name, _, call = self._calls[which]
        found = call()
        if asyncio.iscoroutine(found):
            self._loop.run_until_complete(found)
        return f"{name.split()[0]}: taken"


_LINES: tuple[dict[str, Any], ...] = (
    {"metrics": {"loss": 0.5, "n": 3}, "step": 4, "time": 1.5, "timestamp": "2026-01-01T00:00:00.5"}, {"event": "m", "level": "info"},
    {"metadata": {"a": {"b": 1}}}, {"tags": ["x"]}, {"status": "failed", "reason": "r"}, {"file": "/etc/hostname", "category": "output",
    "name": "n"},
    {"file": "a", "digest": DIGEST, "size": 5}, {"alert": "hot", "state": "critical"},
    {"define": {"name": "hot", "source": "metrics", "rule": "is above", "metric": "loss", "threshold": 1}}, {"process": {"pid": 1}},
    {"run": {"name": "n"}, "pid": 5},
)  # fmt: skip


class InboxSubject:
    """Lines that any program may append: parsed, checked as the SDK checks its arguments."""

    documented = (NotUnderstood, InvalidRecord)

    def __init__(self, folder: Path) -> None:
        spool = open_spool(folder / "spool", create=True)
        run = spool.run(ids.to_text(ids.new_id()))
        Path(run.path).mkdir(parents=True)
        self._reader = Reader(run)
        self._keep = control.keep_alert
        control.keep_alert = lambda path, body: dict(body)  # nothing is written, or a million files would be

    def make(self, random: Random) -> bytes:
        """Return a line, changed."""
        line = json.dumps(random.choice(_LINES)).encode()
        if random.random() < 0.6:
            line = mutations.as_json(mutations.of_value(random, random.choice(_LINES), most=2))
        if random.random() < 0.3:
            line = mutations.of_bytes(random, line, most=4)
        if random.random() < 0.1:
            line = line.replace(b"0.5", random.choice((b"1.0D-3", b"+.5", b"nan(0x1)", b"-Infinity", b"1-101", b"*****", b"9" * 500)))
        return line

    def run(self, line: bytes) -> str:
        """Understand it, or say why not."""
        found = self._reader.understand(line)
        return "metrics" if isinstance(found, Metrics) else type(found).__name__


class ReceiptSubject:
    """Receipts as they are carried back to the first spool."""

    def __init__(self, folder: Path) -> None:
        try:
            self._receipts = importlib.import_module("simspool.agent.carry.receipts")
            self._parse = self._receipts.parse_receipt
            self.documented = (importlib.import_module("simspool.agent.carry.incoming").NotTaken,)
        except (ImportError, AttributeError) as error:
            raise SystemExit(f"no receipts to parse here: {error}") from None
        self._good = {
            "simspool-receipt": 1, "id": WRITER, "for": RUN, "from": WRITER, "at": 1_700_000_000.5,
            "targets": [{"name": "server", "kind": "simspool", "server": "id", "required": True}],
            "runs": {RUN: {
                "custody": {WRITER: [1, 2000, DIGEST, True]}, "files": [DIGEST], "delivered": {WRITER: [10, 77]}, "stored": [DIGEST],
                "refused": [[WRITER, 3, "bad"]], "refused_files": [[DIGEST, "too large"]], "complete": True,
            }}, "pruned": {RUN: {WRITER: 10}},
        }  # fmt: skip

    def make(self, random: Random) -> bytes:
        """Return a receipt, changed."""
        raw = mutations.as_json(mutations.of_value(random, self._good, most=2))
        return mutations.of_bytes(random, raw, most=3) if random.random() < 0.3 else raw

    def run(self, data: bytes) -> str:
        """Parse it, or say why not."""
        self._parse(data)
        return "parsed"


_ALERTS: tuple[dict[str, Any], ...] = (
    {"name": "hot", "source": "metrics", "rule": "is above", "metric": "loss", "threshold": 1.0, "window": 5.0, "hysteresis": 0.5,
    "hold": 1.0,
     "frequency": 1.0, "clear_after": 3.0, "aggregation": "all", "trigger_abort": True, "notification": "email", "description": "d"},
    {"name": "in", "source": "metrics", "rule": "is inside range", "metric": "lo*", "range_low": 1, "range_high": 2},
    {"name": "said", "source": "events", "pattern": "re:(warn|err)or{1,3}[^a-z]+\\d$", "frequency": 2.0},
    {"name": "ref", "source": "metrics", "rule": "deviates from reference", "metric": "loss", "reference": DIGEST, "tolerance": 0.1,
    "xaxis": "time"},
    {"name": "both", "source": "alerts", "when": "hot and (said or not 3 of 'in x') and all ref",
    "runs": 'folder=/a tag=x name="o *" metadata.k=v'},
    {"name": "slow", "source": "metrics", "rule": "no progress", "window": 60.0},
)  # fmt: skip
_REQUEST = {"id": WRITER, "reason": "r", "by": "user", "alert": None, "sticky": False, "writers": [WRITER], "at": {"wall": 1, "boot": 2,
"boot_id": "0"}}
_TEXTS = ("loss is above 3 over 5s", "loss=(\\S+) lr=(?P<lr>[0-9.]+)", "energy := E\\s*=\\s*(?P<energy>\\S+)", "{step} loss {loss}",
"preset:lammps")


class AlertSubject:
    """Definitions of alerts, rules, expressions of other alerts, filters of runs, abort requests, patterns of `agent exec`."""

    documented = (SpoolError, InvalidRule)

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, random: Random) -> tuple[str, Any]:
        """Return (what it is, the value)."""
        how = random.randrange(10)
        if how < 4:
            return "define", mutations.of_value(random, random.choice(_ALERTS), most=2)
        if how < 6:
            given = dict(random.choice(_ALERTS))
            body = alert_definition.define(given.pop("name"), given.pop("source"), **given) | {"since": 0.0, "by": "site"}
            return "rule", mutations.of_value(random, body, most=3)
        if how == 6:
            return "request", mutations.of_bytes(random, mutations.as_json(mutations.of_value(random, _REQUEST)), most=2)
        kind, base = ("when", _ALERTS[4]["when"]) if how == 7 else ("runs", _ALERTS[4]["runs"]) if how == 8 else ("text",
        random.choice(_TEXTS))
        return kind, mutations.of_bytes(random, str(base).encode(), most=4).decode(errors="replace")

    def run(self, given: tuple[str, Any]) -> str:
        """Parse it; what is refused says so by an error that is documented for it."""
        kind, value = given
        if kind == "define":
            if not isinstance(value, dict):
                return "no object"
            named = {str(k): v for k, v in value.items()}
            body = alert_definition.define(named.pop("name", None), named.pop("source", "metrics"), **named)
            parse_rule(body)
            return "defined"
        if kind == "rule":
            if isinstance(value, dict):
                self._judge(parse_rule(value))
            return "parsed"
        if kind == "request":
            try:
                control.decode_request(value)
            except ValueError:  # as its docstring says
                return "no request"
        elif kind == "when":
            alert_expression.parse(value).holds(lambda name, count: len(name) > count)
        elif kind == "runs":
            run_filter.parse(value)
        else:
            try:
                parse_condition(value, abort=True)
            except InvalidRecord:
                list(Patterns([value], [value]).scan(b"loss=1 lr=0.5\nE = 3 \xff\n"))
        return f"{kind} parsed"

    @staticmethod
    def _judge(rule: Any) -> None:
        rule.describe()
        rule.matcher()("loss" * 50)


_SETTINGS = b"""
[spool]
dir = "/tmp/spool"
durability = "each"
segments = "mapped"
[server]
url = "https://server.example"
token_file = "token"
[agent]
start = "off"
alerts = "alerts.toml"
[emissions]
country = "DEU"
[run]
name = "n"
tags = ["a"]
metadata = { k = 1 }
[abort]
answer_grace = 1.5
[budget]
bytes = "20 GB"
inodes = 100000
age = "30 days"
free = "5%"
shed = "runs"
[notify]
on = ["firing", "resolved"]
per_minute = 5
terminal = true
file = "/tmp/notices"
[notify.command]
run = ["/bin/true", "{alert}"]
timeout = 5
[notify.mail]
smtp = "mail.example:25"
tls = "starttls"
from = "a@b.c"
to = ["d@e.f"]
[target.a]
kind = "mlflow"
url = "http://x:5000"
bandwidth = "10 MB/s"
uploads = 3
experiment = "e"
[target.b]
kind = "directory"
path = "/tmp/b"
required = false
[[alerts]]
name = "hot"
metric = "loss"
rule = "is above"
threshold = 1.0
where = "folder=/a tag=x"
"""


class ConfigSubject:
    """simspool.toml with all its tables, a site's file of alerts, and what the spool notes of targets."""

    def __init__(self, folder: Path) -> None:
        from simspool.agent.alerts.site import InvalidSiteFile

        self.documented = (SdkError, SpoolError, InvalidSiteFile, notify_settings.InvalidNotify)
        self._folder, self._file = folder, folder / "simspool.toml"
        self._env = {"HOME": str(folder)}
        (folder / "token").write_text("t")

    def make(self, random: Random) -> bytes:
        """Return a file, changed."""
        lines = _SETTINGS.splitlines(keepends=True)
        for _ in range(random.randint(0, 3)):
            at = random.randrange(len(lines))
            key, found, _rest = lines[at].partition(b"=")
            if found and random.random() < 0.7:
                odd = mutations.as_json(mutations.odd(random)).replace(b"null", b"nan").replace(b"Infinity", b"inf").replace(b"NaN", b"nan")
                lines[at] = key + b"= " + odd + b"\n"
            else:
                lines[at] = random.choice((b"", lines[random.randrange(len(lines))], b"[x]\n"))
        data = b"".join(lines)
        return mutations.of_bytes(random, data, most=3) if random.random() < 0.4 else data

    def run(self, data: bytes) -> str:
        """Load it, and hand each table to its reader."""
        self._file.write_bytes(data)
        refused = ""
        try:
            config = load_config(folder=str(self._folder), environ=self._env)
        except self.documented as error:
            config, refused = None, type(error).__name__
        if config is not None:
            repr(config)
            for name, table in config.targets.items():
                try:
                    settings.parse(name, table, "simspool.toml")
                except self.documented as error:
                    refused = type(error).__name__
            try:
                notify_settings.parse(config.notify, "simspool.toml")
            except self.documented as error:
                refused = type(error).__name__
        at = data.find(b"[[alerts]]")
        if at >= 0:
            self._file.write_bytes(data[at:])
            try:
                site.load(str(self._file))
            except self.documented as error:
                refused = type(error).__name__
        return f"refused: {refused}" if refused else "loaded"


SUBJECTS = {
    "server-answers": ServerAnswerSubject, "inbox": InboxSubject, "receipts": ReceiptSubject, "alerts": AlertSubject,
    "config": ConfigSubject,
}  # fmt: skip
