"""Runs that a program begins by itself, with nothing but the spool's folder: a file in the spool's own `inbox/` whose first line says so.

The file is linked into the run's inbox, and is from then on one of its files. What run it has is noted beside it before anything else is
made, so that a kill in the middle makes no second one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from simspool.sdk import process_tree
from simspool.sdk import validation as check
from simspool.sdk.provenance import scheduler
from simspool.spool import InvalidRecord, Kind, Origin, RunFolder, Spool, Writer, atomic, ids
from simspool.spool.process import this_host

from . import quarantine
from .append import utc_text
from .files import InboxFile
from .lenient import NotUnderstood, parse
from .positions import first_record, first_records, is_file

_KEYS = {"name", "folder", "tags", "metadata", "description"}
_NOTES = ".runs"


class Newcomers:
    """Look at it about once a second. Confined to one thread.

    `open` are the runs that only a line of `status` ends: no process of this host stands for them.
    """

    def __init__(self, spool: Spool, report: Callable[[str], None]) -> None:
        self._spool, self._report = spool, report
        self._folder = os.path.join(spool.path, "inbox")
        self._known: dict[tuple[str, int], bool] = {}
        self.open: set[str] = set()

    def look(self) -> None:
        """Begin the runs whose files have come."""
        try:
            with os.scandir(self._folder) as entries:
                found = [(e.name, e.inode()) for e in entries if e.name.endswith(".jsonl") and not e.name.startswith(".") and is_file(e)]
        except OSError:
            return
        for name, inode in sorted(found):
            if (name, inode) not in self._known:
                try:
                    done = self._take(name, inode)
                except OSError as error:
                    self._report(f"the run of {os.path.join(self._folder, name)} cannot be begun: {error.strerror or error}")
                    done = True  # the next agent tries again
                if done:
                    self._known[name, inode] = True

    def ended(self, run: str) -> None:
        """A line of `status` was copied."""
        if run in self.open:
            self.open.discard(run)
            info = self._spool.run(run).info()
            path = self._note(str(info.get("file")))
            atomic.write_json(path, {**atomic.read_json(path), "ended": True})

    def _note(self, name: str) -> str:
        return os.path.join(self._folder, _NOTES, f"{name}.json")

    def _take(self, name: str, inode: int) -> bool:
        """Begin a file's run, or find that it has one; False while its first line is not there yet."""
        try:
            noted = atomic.read_json(self._note(name))
        except (OSError, ValueError):
            noted = {}
        if noted.get("inode") != inode:
            body = self._first_line(name)
            if body is None:
                return False
            if not body:
                return True
            atomic.make_folder(os.path.dirname(self._note(name)))
            noted = {"inode": inode, "run": ids.to_text(ids.new_id()), "body": body}
            atomic.write_json(self._note(name), noted)
        run = self._spool.run(noted["run"])
        linked = os.path.join(run.inbox, name)
        if not os.path.exists(linked):
            self._begin(run, name, noted["body"])
            atomic.link(os.path.join(self._folder, name), linked)
        if not noted.get("ended") and not _stands_for_a_process(run):
            self.open.add(run.id)
        return True

    def _first_line(self, name: str) -> dict[str, Any] | None:
        """Return what the first line says, checked; nothing of what is not understood, None while it is not there yet."""
        file = InboxFile(self._folder, name, None)
        lines = [line for line in file.lines() if line.data is None or line.data.strip()]
        file.close()
        if not lines:
            return None
        try:
            if lines[0].data is None:
                raise NotUnderstood("the line is too long")
            return _checked(parse(lines[0].data))
        except (NotUnderstood, InvalidRecord) as error:
            quarantine.keep(self._spool, self._spool.id, name, 1, lines[0], str(error))
            self._report(f"{os.path.join(self._folder, name)} begins no run: {error}")
            return {}

    def _begin(self, run: RunFolder, name: str, body: dict[str, Any]) -> None:
        """Record the run, unless that was done. Raises OSError."""
        atomic.make_folder(run.inbox)
        if not run.info():
            origin = Origin.now()
            info = origin.run_info(run.id, body["run"]["name"], utc_text(origin.wall // 1000))
            atomic.write_json(os.path.join(run.path, "run.json"), {**info, "file": name}, exclusive=True)
        if any(record.kind == Kind.RUN for writer in run.writer_ids() for record in first_records(run, writer)):
            return
        found = process_tree.identify(body["pid"]) if body.get("pid") else None
        record = {**body["run"], "status": "running", "created": run.info().get("created", ""), "system": {"hostname": this_host().name}}
        writer = Writer(
            run.writers, ids.from_text(run.id), origin=Origin.of_run(run.info()),
            holder=None if found is None else (found.pid, found.start_ticks),
        )  # fmt: skip
        kept = found is not None or writer.record(Kind.ATTACH, {"reason": "inbox", **scheduler()})
        kept = kept and writer.record(Kind.RUN, record | ({"proxy": True} if found is not None else {}))
        writer.sync()
        if found is None:
            writer.close({"status": None})
        if not kept:
            raise OSError(writer.last_error)


def _stands_for_a_process(run: RunFolder) -> bool:
    first = [first_record(run, writer) for writer in run.writer_ids()]
    return any(record is not None and record.kind == Kind.RUN for record in first)


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """Return {"run": its fields, "pid"?: of this host}. Raises NotUnderstood and InvalidRecord."""
    given, pid = line.get("run"), line.get("pid")
    if not isinstance(given, dict) or line.keys() - {"run", "pid"} or given.keys() - _KEYS:
        raise NotUnderstood(f'the first line must be {{"run": {{...}}, "pid"?: n}}, with {", ".join(sorted(_KEYS))}')
    run = {
        "name": check.check_name("run name", given.get("name", time.strftime("inbox-%Y%m%d-%H%M%S", time.gmtime()))),
        "folder": check.check_folder(given.get("folder", "/")), "tags": check.check_tags(given.get("tags", [])),
        "metadata": check.check_metadata(given.get("metadata", {})),
    }  # fmt: skip
    if "description" in given:
        run["description"] = check.check_text("description", given["description"])
    if pid is not None and process_tree.identify(check.check_count("pid", pid)) is None:
        pid = None  # another host's, or it has ended: the line of its status ends the run
    return {"run": run} | ({"pid": pid} if pid is not None else {})
