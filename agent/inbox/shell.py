"""A run for a shell script: its writer stands for the shell, so that sampling, aborts and the run's end are those of the script.

Whoever makes it goes at once. The run ends with the shell: the agent closes it by how that ended (docs/survivors.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from simspool.sdk import process_tree, provenance
from simspool.sdk import validation as check
from simspool.spool import InvalidRecord, Kind, Origin, RunFolder, SpaceExhausted, Spool, Writer, atomic, ids

from .append import utc_text


def calling_shell() -> int:
    """Return the pid of the shell that called this process: of `$( ... )` and other subshells, the shell that they are of.

    A subshell is its parent forked: the kernel gave both the same auxiliary vector when the program began.
    """
    pid = os.getppid()
    while True:
        parent, own = _parent(pid), _auxiliary(pid)
        if parent <= 1 or not own or own != _auxiliary(parent):
            return pid
        pid = parent


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _auxiliary(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/auxv", "rb") as f, open(f"/proc/{pid}/cmdline", "rb") as command:
            return f.read() + command.read()
    except OSError:
        return b""


def begin(
    spool: Spool, pid: int, *, name: str | None = None, folder: str = "/", tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None, description: str | None = None,
) -> RunFolder:  # fmt: skip
    """Begin a run that ends with a process of this host; returns its folder. Its inbox is there.

    Raises InvalidRecord for values that are not valid and for a pid without a process; OSError, SpaceExhausted among them, when the spool
    cannot take it.
    """
    process = process_tree.identify(pid)
    if process is None:
        raise InvalidRecord(f"there is no process {pid} on this host: give --pid of one that runs ($$ in a shell)")
    raw, origin = ids.new_id(), Origin.now()
    run = spool.run(ids.to_text(raw))
    created = utc_text(origin.wall // 1000)
    body: dict[str, Any] = {
        "name": check.check_name("run name", name) if name is not None else f"shell-{run.id[:8]}", "folder": check.check_folder(folder),
        "metadata": check.check_metadata(metadata or {}), "tags": check.check_tags(list(tags)), "status": "running", "created": created,
        "proxy": True, "system": _system(),
    }  # fmt: skip
    if description is not None:
        body["description"] = description
    atomic.make_folder(run.inbox)
    atomic.write_json(os.path.join(run.path, "run.json"), origin.run_info(run.id, body["name"], created), exclusive=True)
    writer = Writer(run.writers, raw, origin=origin, holder=(process.pid, process.start_ticks))
    if not writer.record(Kind.RUN, body):
        raise SpaceExhausted(0, f"the run cannot be recorded: {writer.last_error}")
    writer.sync()
    return run


def _system() -> dict[str, Any]:
    """Return what the run runs on; the interpreter of this command is no part of it."""
    return {key: value for key, value in provenance.system().items() if key not in {"python", "pythonversion"}}
