"""What a line of an inbox says, as the record that it gives: the same checks and limits as the SDK's."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from simspool.sdk import process_tree
from simspool.sdk import validation as check
from simspool.spool import InvalidRecord, Kind, RunFolder, alert_definition, blobs, control
from simspool.spool.process import this_host
from simspool.spool.scalars import real, whole

from .lenient import NotUnderstood, parse
from .positions import first_record

_HEX = frozenset("0123456789abcdef")


class Metrics(NamedTuple):
    """A line of metrics. `step` is None where the line has none."""

    values: dict[str, Any]
    step: int | None
    time: float | None
    timestamp: int | str | None


class Entry(NamedTuple):
    """A line that gives a record of JSON."""

    kind: Kind
    body: dict[str, Any]


class File(NamedTuple):
    """A line that names a file whose content is to be saved; `body` is the record's but for digest and size."""

    path: str
    body: dict[str, Any]


@dataclass(slots=True)
class Reader:
    """Understands the lines of one run."""

    run: RunFolder
    _cwd: str | None = None

    def understand(self, line: bytes) -> Metrics | Entry | File | None:
        """Return what a line says, None where it has no more to say. Raises NotUnderstood for what is not valid, naming it."""
        try:
            return self.check(parse(line))
        except InvalidRecord as error:
            raise NotUnderstood(str(error)) from None

    def check(self, body: dict[str, Any]) -> Metrics | Entry | File | None:
        """Return what a parsed line says. Raises NotUnderstood and InvalidRecord."""
        found = [name for name in _FORMS if name in body]
        if len(found) != 1:
            named = f"has {' and '.join(found)}" if found else "has none of them"
            raise NotUnderstood(f"a line must have exactly one of {', '.join(_FORMS)}; it {named}")
        allowed, form = _FORMS[found[0]]
        strange = [name for name in body if name not in allowed]
        if strange:
            raise NotUnderstood(f"a line of {found[0]} has no {strange[0]!r}: only {', '.join(allowed)}"[:300])
        return form(self, body)

    # ------------------------------------------------------------------ the forms

    def _metrics(self, body: Mapping[str, Any]) -> Metrics:
        step, time = body.get("step"), body.get("time")
        if isinstance(step, float) and step.is_integer():  # a shell's 1e6
            step = int(step)
        if not isinstance(body["metrics"], dict):
            raise NotUnderstood("metrics must be an object of names and numbers")
        return Metrics(
            body["metrics"],
            None if step is None else whole("step", repr(step) if isinstance(step, bool) else step),
            None if time is None else real("time", time),
            None if body.get("timestamp") is None else check.check_timestamp(body["timestamp"]),
        )

    def _event(self, body: Mapping[str, Any]) -> Entry:
        found: dict[str, Any] = {"message": check.check_text("event", body["event"])}
        if body.get("timestamp") is not None:
            found["timestamp"] = check.check_timestamp(body["timestamp"])
        if body.get("level") is not None:
            found["level"] = check.one_of("level", body["level"], check.LEVELS)
        return Entry(Kind.EVENT, found)

    def _metadata(self, body: Mapping[str, Any]) -> Entry:
        return Entry(Kind.METADATA, {"set": check.check_metadata(body["metadata"])})

    def _tags(self, body: Mapping[str, Any]) -> Entry:
        return Entry(Kind.TAGS, {"op": "add", "tags": check.check_tags(body["tags"])})

    def _status(self, body: Mapping[str, Any]) -> Entry:
        found: dict[str, Any] = {"status": check.one_of("status", body["status"], check.STATUSES)}
        if body.get("reason") is not None:
            found["reason"] = check.check_text("reason", body["reason"])
        return Entry(Kind.STATUS, found)

    def _file(self, body: Mapping[str, Any]) -> Entry | File:
        path = check.check_text("file", body["file"])
        if not path or "\0" in path:
            raise NotUnderstood("file must be a path")
        name, mime = body.get("name"), body.get("mime")
        if not os.path.isabs(path):
            path = os.path.join(self._working_folder(), path)
        path = os.path.normpath(path)
        found: dict[str, Any] = {
            "name": check.check_name("name", name) if name is not None else os.path.basename(path),
            "category": check.check_category(body.get("category", "output")), "path": path,
            "mime": check.check_mime(mime) if mime is not None else mimetypes.guess_type(path)[0] or "application/octet-stream",
        }  # fmt: skip
        digest, size = body.get("digest"), body.get("size")
        if digest is None:
            return File(path, found)
        if not isinstance(digest, str) or len(digest) != 64 or not _HEX.issuperset(digest) or isinstance(size, bool):
            raise NotUnderstood("digest must be a SHA-256 in 64 hex digits, with the file's size")
        stored = os.path.join(self.run.blobs, digest)
        try:
            kept = os.stat(stored).st_size
        except OSError:
            kept = -1
        if kept != size:
            raise NotUnderstood(f"the run has no file of digest {digest} and size {size}: leave digest out, and the file is copied")
        return Entry(Kind.ARTIFACT, {**found, "digest": digest, "size": size})

    def _alert(self, body: Mapping[str, Any]) -> Entry:
        name = check.check_text("alert", body["alert"])
        known = control.read_alert(control.alert_file(self.run, name))
        if known is None or known["name"] != name:
            raise NotUnderstood(f"this run has no alert {name!r}: define it first, with a line of define"[:300])
        if known.get("source") != "user":
            raise NotUnderstood(f"alert {name!r} is judged by its rule: only alerts of source 'user' have a state to set"[:300])
        state = check.one_of("state", body.get("state", "critical"), ("ok", "critical"))
        return Entry(Kind.ALERT_STATE, {"id": known["id"], "alert": name, "state": state})

    def _define(self, body: Mapping[str, Any]) -> Entry:
        given = body["define"]
        if not isinstance(given, dict):
            raise NotUnderstood("define must be an object: an alert's name, source, rule, metric and so on")
        given = {key: value for key, value in given.items() if value is not None}
        alert = alert_definition.define(given.pop("name", None), given.pop("source", "metrics"), **given)
        try:
            known = control.keep_alert(control.alert_file(self.run, alert["name"]), alert)
        except OSError:  # the record counts; the file only keeps two from defining one name differently
            known = alert
        if known["id"] != alert["id"]:
            described = alert_definition.describe(known)
            raise NotUnderstood(f"this run has an alert {alert['name']!r} already: {described}: give one of them another name"[:400])
        return Entry(Kind.ALERT, {**alert, "by": "script"})

    def _process(self, body: Mapping[str, Any]) -> Entry | None:
        given = body["process"]
        if not isinstance(given, dict) or given.keys() != {"pid"}:
            raise NotUnderstood('process must be an object with a pid: {"process": {"pid": 1234}}')
        pid = check.check_count("pid", given["pid"])
        found = process_tree.identify(pid)
        if found is None:
            return None  # it has ended since: nothing is left to be sampled or stopped
        host = this_host()
        return Entry(
            Kind.PROCESS_START,
            {
                "pid": pid, "start_ticks": found.start_ticks, "boot_id": host.boot_id.hex(), "pid_namespace": host.pid_namespace,
                "host": host.name, "foreign": True,
            },
        )  # fmt: skip

    def _run(self, _: Mapping[str, Any]) -> None:
        """The first line of a file that began its run."""

    def _working_folder(self) -> str:
        """Return the run's working folder, as its first record has it. Raises NotUnderstood where none does."""
        if self._cwd is None:
            self._cwd = _cwd_of(self.run)
        if not self._cwd:
            raise NotUnderstood("the run does not say in which folder it works: give the file's absolute path")
        return self._cwd


def _cwd_of(run: RunFolder) -> str:
    for writer in run.writer_ids():
        first = first_record(run, writer)
        if first is not None and first.kind == Kind.RUN:
            system = (first.body or {}).get("system")
            cwd = system.get("cwd") if isinstance(system, dict) else None
            return cwd if isinstance(cwd, str) and os.path.isabs(cwd) else ""
    return ""


def artifact(found: File, blob: blobs.Blob) -> Entry:
    """Return the record of a file whose content is kept."""
    return Entry(Kind.ARTIFACT, {**found.body, "digest": blob.digest, "size": blob.size})


_Form = Callable[[Reader, Mapping[str, Any]], "Metrics | Entry | File | None"]
_FORMS: dict[str, tuple[tuple[str, ...], _Form]] = {  # by the key that a line has one of: all its keys, and what it means
    "metrics": (("metrics", "step", "time", "timestamp"), Reader._metrics),  # noqa: SLF001 - own class
    "event": (("event", "level", "timestamp"), Reader._event),  # noqa: SLF001
    "metadata": (("metadata",), Reader._metadata),  # noqa: SLF001
    "tags": (("tags",), Reader._tags),  # noqa: SLF001
    "status": (("status", "reason"), Reader._status),  # noqa: SLF001
    "file": (("file", "category", "name", "mime", "digest", "size"), Reader._file),  # noqa: SLF001
    "alert": (("alert", "state"), Reader._alert),  # noqa: SLF001
    "define": (("define",), Reader._define),  # noqa: SLF001
    "process": (("process",), Reader._process),  # noqa: SLF001
    "run": (("run", "pid"), Reader._run),  # noqa: SLF001
}
