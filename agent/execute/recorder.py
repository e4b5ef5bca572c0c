"""The run that records a command: the SDK's Run, with what only `agent exec` knows to say.

Nothing raises once the run has begun: what cannot be recorded is counted, and the first of each kind is said on stderr.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

from simspool.agent.inbox.ring import ring
from simspool.sdk import Run
from simspool.sdk.errors import MISTAKES
from simspool.sdk.notice import say
from simspool.sdk.process_tree import Process
from simspool.sdk.redaction import Redactor
from simspool.spool import Kind, RunFolder, Spool, atomic, blobs
from simspool.spool.process import start_ticks, this_host

Category = Literal["input", "output", "code"]
_LONGEST = 4000  # characters of a command as metadata
_MOST = 64 << 10  # characters of an argument vector in a record
_NO_NAME = re.compile(r"[^a-zA-Z0-9\-_\s/.:]")


class CommandRun(Run):
    """A run, or a rank's part of one. Make it with the mode "disabled" where nothing can be recorded."""

    def __init__(
        self,
        mode: Literal["online", "disabled"] = "online",
        *,
        abort_callback: Callable[[Run], None] | None = None,
        url: str | None = None,
        token: str | None = None,
        agent: Literal["auto", "off"] | None = None,
    ) -> None:
        super().__init__(mode, abort_callback, token, url, agent=agent)
        self.is_creator = True
        self.rank: int | None = None
        self._said: set[str] = set()

    def join(self, run: str, rank: int | None) -> None:
        """Take part in a run that is there. Raises what `Run.attach` raises."""
        self.is_creator, self.rank = False, rank
        self._join(run, "attach", rank)

    @property
    def spool(self) -> Spool | None:
        """The spool; None while the disk refuses."""
        return self._recording.spool if self._recording is not None else None

    @property
    def run_folder(self) -> RunFolder | None:
        """The run's folder; None while the disk refuses."""
        return self._recording.folder if self._recording is not None else None

    @property
    def term_grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL of an abort."""
        return self._recording.graces.term if self._recording is not None else 0.0

    @contextlib.contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Keep whatever goes wrong from the command: it is said once for each `what`, and the command goes on."""
        try:
            yield
        except MISTAKES as error:
            self._say(what, str(error))
        except Exception as error:  # noqa: BLE001 - the recorder's own mistakes must not hurt the command either
            self._say(what, f"{type(error).__name__}: {error}")

    def _say(self, what: str, why: str) -> None:
        if what not in self._said:
            self._said.add(what)
            say(f"not recorded: {what} ({why}); the command is not affected")

    # ------------------------------------------------------------------ what is recorded

    def environment(self) -> dict[str, str]:
        """Return what the command's environment is to have, so that what runs in it can record into this run."""
        spool, folder = self.spool, self.run_folder
        if spool is None or folder is None:
            return {}
        with contextlib.suppress(OSError):
            atomic.make_folder(folder.inbox)
            ring(spool.path, folder.id)
        return {"SIMSPOOL_RUN": folder.id, "SIMSPOOL_DIR": spool.path, "SIMSPOOL_INBOX": folder.inbox}

    def add_alert(self, body: Mapping[str, Any]) -> None:
        """Give the run an alert, by the body of its definition. Raises InvalidRecord for a name that has another definition."""
        if self._ready("create_alert") is not None:
            self._attach({key: value for key, value in body.items() if key != "by"})

    def started(self, pid: int, command: Sequence[str]) -> Process | None:
        """Record that the command has been started; returns who it is."""
        found, recording = start_ticks(pid), self._recording  # it may have ended already; nobody has waited for it yet
        if found is None or recording is None:
            return None
        process = Process(pid, found[0])
        recording.foreign.append(process)
        kept = _listed(recording.redactor.arguments(command))
        self._record(Kind.PROCESS_START, {**_identity(process), "identifier": "command", "command": kept})
        return process

    def exited(self, process: Process | None, how: Mapping[str, int]) -> None:
        """Record how the command ended."""
        if process is not None:
            self._record(Kind.PROCESS_EXIT, {**_identity(process), "identifier": "command", **how})

    def save(self, path: str, category: Category, base: str) -> None:
        """Save a file, named by its path from `base`. One that has vanished is no mistake."""
        name = os.path.relpath(path, base) if path.startswith(base.rstrip("/") + "/") else path.lstrip("/")
        with self.guard(f"the file {path}"):
            try:
                self.save_file(path, category, name=_NO_NAME.sub("_", name)[-1024:])
            except MISTAKES:
                if os.path.exists(path):
                    raise

    def save_stream(self, name: str, file: BinaryIO, size: int, left_out: int) -> None:
        """Save what a stream printed."""
        path = f"/proc/self/fd/{file.fileno()}"
        body = {
            "name": name if self.rank is None else f"{name}.{self.rank}", "category": "output", "mime": "text/plain", "path": "",
            "metadata": {"bytes": size, "left_out": left_out},
        }  # fmt: skip
        self._save(lambda spool, folder: blobs.put_file(spool, folder, path), body)

    # ------------------------------------------------------------------ the end

    def await_abort(self) -> None:
        """Wait until an abort that has begun has done its part; at most as long as its graces."""
        if self._recording is not None:
            self._recording.await_abort()

    def end(self, status: str, reason: str | None) -> None:
        """Close this part of the run with the command's status. Of a run of several ranks, the worst counts."""
        recording = self._recording
        if recording is None:
            return
        recording.close(status, reason)
        if self.is_creator or recording.drops:
            recording.say_how_it_ended()

    @property
    def final_status(self) -> str:
        """What the part was closed as where an abort decided it, else empty."""
        return "terminated" if self._recording is not None and self._recording.abort_reason is not None else ""


def command_text(command: Sequence[str], redactor: Redactor) -> str:
    """Return a command as one would type it, bounded, without secrets."""
    import shlex

    text = printable(shlex.join(redactor.arguments(command)))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


def printable(text: str) -> str:
    """Return text whose bytes that are no UTF-8 are shown as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _listed(command: Sequence[str]) -> list[str]:
    listed: list[str] = []
    size = 0
    for argument in command:
        size += len(argument) + 4
        if size > _MOST:
            return [*listed, "..."]
        listed.append(printable(argument))
    return listed


def _identity(process: Process) -> dict[str, Any]:
    host = this_host()
    return {
        "pid": process.pid, "start_ticks": process.start_ticks, "boot_id": host.boot_id.hex(), "pid_namespace": host.pid_namespace,
        "host": host.name,
    }  # fmt: skip
