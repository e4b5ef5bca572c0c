"""One process's part in one run: the spool's folder, the writer, the blobs on their way to the pool, and the end.

The disk may be full or read-only from the first moment: then nothing is recorded, every call is counted, and the opening is
tried again about once a second.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from simspool.spool import Drop, Kind, Origin, RunFolder, Spool, SpoolError, Writer, atomic, ids, open_spool, pressure
from simspool.spool.agent_address import living_agent

from . import keeper
from .bell import AgentAddress, Bell
from .notice import say
from .pressure import Look, Thinning, origin_boot, watched_by
from .validation import check_metric_name

if TYPE_CHECKING:
    from simspool.spool.blobs import Blob

    from .aborting import Aborting
    from .config import Config
    from .executor import Executor
    from .ladder import Ladder
    from .process_tree import Process
    from .redaction import Redactor
    from .sampling.script import ScriptSampler

_AGENT_EVERY = 5.0  # s between two looks whether an agent is to be started
_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class Recording:
    """Make one with `Recording(config, run_id, ...)`, then `open`.

    `first` is the first record, (kind, body); `info` is run.json's content for the creator of the run, None for others.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        first: tuple[Kind, dict[str, Any]],
        *,
        info: dict[str, Any] | None,
        origin: Origin,
        rank: int | None,
    ) -> None:
        self._config = config
        self.run_id = run_id
        self.origin = origin
        self._rank = rank
        self._first: tuple[Kind, dict[str, Any]] | None = first
        self._info = info
        self._is_new = info is not None
        self._sampler: ScriptSampler | None = None
        self._looked = False
        self.options: Mapping[str, Any] = {}
        self.pid = self.creator_pid = os.getpid()
        self.spool: Spool | None = None
        self.folder: RunFolder | None = None
        self.writer: Writer | None = None
        self.is_closed = False
        self.run: Aborting | None = None
        self.ladder: Ladder | None = None
        self._ladders: list[Ladder] = []
        self.abort_reason: str | None = None
        self.graces = config.graces
        self.foreign: list[Process] = []
        self.executor: Executor | None = None
        self.defined: Mapping[str, Mapping[str, Any]] = {}  # the alerts that the script has defined
        self.stated: set[str] = set()  # alerts whose state the script has set
        self.address: AgentAddress | None = None
        self.status_at_exit: str | None = "completed"
        self.is_status_set = False
        self._reason = ""
        self._lost = 0
        self._warned = False
        self._bell: Bell | None = None
        self._with_bell = False
        self._agent_due = 0.0
        self._unpublished: deque[str] = deque()
        self.level = pressure.FREE  # what the spool refuses; see pressure.py
        self._look: Look | None = None
        self._standing = pressure.Pressure()
        self._thinning: Thinning | None = None
        self._told = pressure.FREE

    @property
    def redactor(self) -> Redactor:
        """What takes secrets out of what is captured."""
        from .redaction import Redactor

        return Redactor.of(self._config.redact)

    def describe(self, error: BaseException) -> tuple[str, str]:
        """Return an exception's traceback, bounded, and its last line, as they may be kept."""
        text, summary = describe(error)
        if isinstance(error, KeyboardInterrupt):  # it has no message; and see `describe` on what must not be imported now
            return text, summary
        hide = self.redactor.text
        return hide(text), hide(summary)

    def open(self, *, with_bell: bool) -> None:
        """Begin. Raises InvalidSpool and NewerFormat; a disk that cannot take anything only leaves a warning."""
        self._with_bell = with_bell
        if not self._try_open():
            self.dropped()
        _register(self)
        keeper.watch(self)

    def _try_open(self) -> bool:
        try:
            if self.spool is None:
                self.spool = open_spool(self._config.spool_dir, create=True)
                self.folder = self.spool.run(self.run_id)
            assert self.folder is not None
            if self.writer is None:
                mapped = None if self._config.segments is None else self._config.segments == "mapped"
                writer = Writer(
                    self.folder.writers, ids.from_text(self.run_id), durability=self._config.durability, origin=self.origin,
                    rank=self._rank, mapped=mapped, on_fork=self._forked, check_name=check_metric_name,
                )  # fmt: skip
                while self._lost:
                    writer.count_drop(Drop.DISK_FULL)
                    self._lost -= 1
                self.writer, self.address = writer, AgentAddress(self.spool.path)
                if self._with_bell:
                    self._bell = Bell(self.address, writer)
                self._look = Look(self.spool.path, self._config.budget)
                self._feel(writer)
            if self._info is not None:
                atomic.make_folder(self.folder.path)
                atomic.write_json(os.path.join(self.folder.path, "run.json"), self._info, exclusive=True)
                self._info = None
        except OSError as error:
            self._reason = error.strerror or str(error)
            if self.writer is None:
                return False
        first, self._first = self._first, None  # taken, so that the keeper and a close at the same time record it once
        if first is not None and not self.writer.record(*first):
            self._first = first
        return self._first is None

    def dropped(self) -> bool:
        """Say once on stderr that records are not being taken, and why. Always False."""
        if self.writer is None:
            self._lost += 1
        if self.level >= pressure.METRICS and self.writer is not None and not self.writer.last_error:
            return False  # thinned: that is said elsewhere
        if not self._warned and not self.is_closed and not (self.writer is not None and self.writer.closed):
            self._warned = True
            why = (self.writer.last_error if self.writer is not None else "") or self._reason or "the disk refuses"
            say(
                f"not recording into {self._config.spool_dir} ({why}); the run goes on and what is lost is counted. "
                "Free some space there, or choose another place with SIMSPOOL_DIR"
            )
        return False

    @property
    def is_complete(self) -> bool:
        """Whether the first record is kept."""
        return self._first is None

    @property
    def drops(self) -> dict[str, int]:
        """What was not taken, by reason."""
        counts = dict(self.writer.drops) if self.writer is not None else {}
        if self._lost:
            counts[Drop.DISK_FULL.label] = counts.get(Drop.DISK_FULL.label, 0) + self._lost
        return counts

    @property
    def is_heard(self) -> bool:
        """Whether an agent takes the records at once."""
        return self._bell is not None and self._bell.is_heard

    def make_ladder(self) -> Ladder | None:
        """Return what acts on abort requests, made when it is first needed; None where no Run records."""
        if self.ladder is None and self.run is not None:
            from .ladder import Ladder

            self._ladders.append(Ladder(self.run, self))
            self.ladder = self._ladders[0]  # two threads may come here at once: one ladder knows what was done
        return self.ladder

    @property
    def started(self) -> list[Process]:
        """The processes of `add_process` that run; none in a fork."""
        return self.executor.running if self.executor is not None else []

    @property
    def failure(self) -> str | None:
        """Which process of `add_process` failed, and how."""
        found = self.executor
        return found.failure if found is not None and found.pid == os.getpid() else None

    def hears_now(self) -> bool:
        """Whether an agent of this host lives and listens at this moment."""
        return self.address is not None and bool(self.address.look())

    def keep(self, put: Callable[[Spool, RunFolder], Blob], body: dict[str, Any]) -> bool:
        """Store a blob and the record that names it. False when the spool cannot take it (counted); UnreadableFile is the caller's."""
        spool, folder, writer = self.spool, self.folder, self.writer
        if spool is None or folder is None or writer is None:
            return self.dropped()
        if self.level >= pressure.FILES:
            self._tell(pressure.FILES)
            return writer.count_drop(Drop.BUDGET)
        try:
            blob = put(spool, folder)
        except SpoolError:
            raise
        except OSError as error:
            self._reason = error.strerror or str(error)
            writer.count_drop(Drop.DISK_FULL if error.errno in _SPACE else Drop.IO_ERROR)
            return self.dropped()
        kept = writer.record(Kind.ARTIFACT, {**body, "name": body["name"] or blob.digest, "digest": blob.digest, "size": blob.size})
        self._unpublished.append(blob.digest)
        return kept or self.dropped()

    def record_quietly(self, kind: Kind, body: dict[str, Any]) -> bool:
        """Record without ringing: for a thread with something urgent to do, which a system call would keep from it."""
        if self.writer is None:
            return False
        if self._bell is not None:
            self._bell.quiet = threading.get_ident()
        kept = self.writer.record(kind, body)
        if self._bell is not None:
            self._bell.quiet = 0
        return kept

    def tend(self) -> bool:
        """See keeper.Tended."""
        if self.is_closed or self.pid != os.getpid():
            return False
        try:
            if self.writer is None or self._first is not None or self._info is not None:
                self._try_open()
            if self.writer is not None:
                self._feel(self.writer)
                self.writer.maintain()
                if self._bell is not None:
                    self._tend_bell(self._bell)
                elif self.address is not None:
                    self.address.look()
                ladder = self.make_ladder()
                if ladder is not None:
                    ladder.tend()
                if self._unpublished:
                    self._publish(1)
                self._sample(self.writer)
        except Exception as error:  # noqa: BLE001 - the next second tries again; what matters is done at close
            self._reason = str(error)
        return True

    def _feel(self, writer: Writer) -> None:
        """Look how much room the spool has, and refuse accordingly (docs/budgets.md)."""
        if self._look is None:
            return
        found = self._standing = self._look.now()
        if found.level:
            if self._thinning is None:
                self._thinning = Thinning(found.level, self._watched, origin_boot(self.origin))
            self._thinning.level = found.level
            self._thinning.refresh()
        self.level, writer.gate = found.level, self._thinning if found.level else None
        if found.level == pressure.FREE:
            self._told = pressure.FREE
        elif found.level >= pressure.METRICS:
            self._tell(pressure.METRICS)

    def _watched(self) -> set[str]:
        return {*self._standing.watched, *watched_by(list(self.defined.values()))}

    def _tell(self, level: int) -> None:
        if level > self._told:
            self._told = level
            what = "files are not taken and " if level >= pressure.FILES else ""
            why = self._standing.why
            say(f"{what}metrics are thinned: {why}; events, alerts and the status are kept, and what is not taken is counted")

    def ring_again(self) -> None:
        """See keeper.Tended."""
        bell = self._bell
        if bell is not None:
            bell.ring_again()

    def _sample(self, writer: Writer) -> None:
        if not self._looked:  # the first look comes at once; many scripts are over before the second, and need not pay for the import
            self._looked = True
            return
        from .sampling.script import ScriptSampler

        assert self.spool is not None
        assert self.folder is not None
        if self._sampler is None:
            self._sampler = ScriptSampler(self.spool.path, self.folder, self.origin, new=self._is_new)
        self._sampler.tend(writer, self.options, [(p.pid, p.start_ticks) for p in (*self.foreign, *self.started)])

    def _publish(self, most: int) -> bool:
        """Make blobs durable and known to the pool; False when the disk refuses, then the next time tries again."""
        if not self._unpublished:
            return True
        from simspool.spool import blobs

        assert self.spool is not None
        assert self.folder is not None
        while self._unpublished and most:
            try:
                digest = self._unpublished.popleft()
            except IndexError:
                break
            try:
                blobs.publish(self.spool, self.folder, [digest])
            except OSError as error:
                self._reason = error.strerror or str(error)
                self._unpublished.append(digest)
                return False
            most -= 1
        return True

    def _tend_bell(self, bell: Bell) -> None:
        bell.look()
        if self.is_closed:  # meanwhile, by another thread
            bell.hang_up()
        elif self._looked and time.monotonic() >= self._agent_due:
            self._agent_due = time.monotonic() + _AGENT_EVERY
            self._has_agent()

    def _has_agent(self) -> bool:
        """Whether an agent takes the records, or is about to: one is started where none does, if the configuration wants it."""
        if self.is_heard:
            return True
        if self.spool is None or self._config.agent != "auto":
            return False
        from .agent_start import AgentStarter

        try:
            return AgentStarter(self._config, self.spool.path).consider()
        except Exception as error:  # noqa: BLE001 - without an agent, what is recorded waits
            self._reason = str(error)
            return False

    def _forked(self, writer: Writer) -> None:
        """In a child that has just become a writer of its own."""
        self.pid = os.getpid()
        self._unpublished = deque()
        self._first = self._info = self._sampler = None
        if self._thinning is not None:
            self._thinning.forked()
        self._is_new = False
        if self._bell is not None and self.address is not None:
            self._bell.hang_up()
            self._bell = Bell(self.address, writer)
        if self.ladder is not None:
            self.ladder.forked()
        _register(self)
        keeper.watch(self)

    def close(self, status: str | None, reason: str | None) -> bool:
        """End this process's part: the last record, seals, blobs. A child of a fork ends its own part, never its parent's."""
        if self.is_closed:
            return True
        writer = self.writer
        if self.pid != os.getpid():  # a child that recorded nothing: the parent's files are not ours
            self.is_closed = True
            return True
        if self.ladder is not None:
            self.ladder.leave()
        if self.abort_reason is not None:
            status, reason = "terminated", self.abort_reason
        if self.pid != self.creator_pid:
            status = None
        is_overruled = False
        if status in {None, "completed"} and self.failure is not None:
            is_overruled = self.is_status_set
            status, reason = "failed", self.failure
        kept = True
        if writer is None or self._first is not None or self._info is not None:
            kept = self._try_open()
            writer = self.writer
        if writer is not None:
            kept = self._publish(len(self._unpublished)) and kept
            if is_overruled:
                writer.record(Kind.STATUS, {"status": status, "reason": reason})
            body: dict[str, Any] = {"status": status}
            if self._thinning is not None and (restated := self._thinning.restate(writer)):
                body["restated"] = restated
            if reason is not None:
                body["reason"] = reason
            kept = writer.close(body) and kept
        self.is_closed = True
        if self._bell is not None:
            self._bell.look()
            heard = self._has_agent()
            self._bell.hang_up()
            self._with_bell = not heard
        _open.pop(id(self), None)
        return kept

    def end_processes(self, error: object) -> None:
        """At the interpreter's end: wait for the processes of `add_process`; stop them where it ends by an exception.

        In an aborted run, the ladder stops them.
        """
        found = self.executor
        if found is None or found.pid != os.getpid():
            return
        try:
            if isinstance(error, BaseException) and self.abort_reason is None:
                found.kill_all(f"the script ended by {type(error).__name__}")
            found.wait_for_completion()
        except BaseException as interruption:  # noqa: BLE001 - Ctrl-C: the interpreter ends anyway, and says so itself
            found.kill_all(f"the script was ended by {type(interruption).__name__}")
            self.status_at_exit = "terminated"

    def await_abort(self) -> None:
        """Wait for an abort that has begun in another thread: at most as long as its graces."""
        if self.ladder is not None and self.pid == os.getpid() and not self.is_closed:
            self.ladder.await_end()

    def say_how_it_ended(self) -> None:
        """One line on how to send the run where no agent does, and one on what was not taken."""
        if self.pid != self.creator_pid:
            return
        counts = self.drops
        if counts:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
            say(f"{sum(counts.values())} records of run {self.run_id} were not taken: {reasons}")
        if self._with_bell and self.writer is not None:
            say(f"recorded in {self._config.spool_dir}: `agent sync {self.run_id}` sends it")
        if self.options.get("enable_emission_metrics") and living_agent(self._config.spool_dir) is None:
            say("emissions are measured by an agent, and none serves this spool: `agent run` before the next run")


_open: dict[int, Recording] = {}
_at_exit = False
_error_before: object = None


def open_recordings() -> list[Recording]:
    """Return what this process records at the moment."""
    return [r for r in list(_open.values()) if r.pid == os.getpid() and not r.is_closed]


def _register(recording: Recording) -> None:
    """Have the recording closed when this process ends in an orderly way."""
    global _at_exit, _error_before
    _open[id(recording)] = recording
    if not _at_exit:
        _at_exit = True
        _error_before = getattr(sys, "last_value", None)
        atexit.register(_close_all)
    child = sys.modules.get("multiprocessing.process")
    if child is not None and child.parent_process() is not None:
        # multiprocessing's children end without atexit
        from multiprocessing.util import Finalize

        Finalize(None, _close_all, exitpriority=10)


def _close_all() -> None:
    """Close what is open in this process; as failed when the interpreter ends by an exception that nobody caught."""
    error = getattr(sys, "last_value", None)  # set before sys.excepthook is called
    if error is _error_before or hasattr(sys, "ps1") or sys.flags.interactive:
        error = None
    for recording in open_recordings():
        recording.end_processes(error)
        recording.await_abort()
        if recording.is_closed:
            continue
        if isinstance(error, BaseException):
            end_with_error(recording, error)
        else:
            recording.close(recording.status_at_exit, None)
        recording.say_how_it_ended()
    if isinstance(error, KeyboardInterrupt):
        _remember_interrupt()


def _remember_interrupt() -> None:
    """Have the interpreter exit by SIGINT, as it does after an interrupt that nobody caught.

    It forgets that, and exits with 1, when any text is evaluated afterwards: as imports with dataclasses do, also in a thread.
    """
    keeper.pause()
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")  # noqa: S102 - only text counts: the interpreter notes what leaves it


def status_of(error: BaseException) -> str | None:
    """Return the status of a run that ends by an exception; None for those that are an ordinary end."""
    if isinstance(error, SystemExit):
        return None if error.code in {None, 0} else "failed"
    if isinstance(error, GeneratorExit):
        return None
    return "failed" if isinstance(error, Exception) else "terminated"


def end_with_error(recording: Recording, error: BaseException) -> bool:
    """Record an exception's traceback as an event, and close with the status that it means."""
    status = status_of(error)
    if status is None:
        return recording.close(recording.status_at_exit, None)
    text, summary = recording.describe(error)
    if recording.writer is not None and recording.pid == os.getpid():
        recording.writer.record(Kind.EVENT, {"message": text, "level": "error"})
    return recording.close(status, summary)


def describe(error: BaseException) -> tuple[str, str]:
    """Return an exception's traceback, bounded, and its last line."""
    if isinstance(error, KeyboardInterrupt):
        # the traceback module evaluates code when it is first imported, after which the interpreter forgets that it was interrupted
        # and would exit with 1 instead of by SIGINT
        lines, at = ["Traceback (most recent call last):"], error.__traceback__
        while at is not None and len(lines) < 200:
            lines.append(f'  File "{at.tb_frame.f_code.co_filename}", line {at.tb_lineno}, in {at.tb_frame.f_code.co_name}')
            at = at.tb_next
        return "\n".join([*lines, "KeyboardInterrupt"]), "KeyboardInterrupt"
    import traceback

    text = "".join(traceback.format_exception(error)).rstrip()
    if len(text) > 200_000:
        text = text[:50_000] + "\n[...]\n" + text[-150_000:]
    return text, traceback.format_exception_only(error)[-1].strip()[:2000]
