"""One run's inbox: its files' lines, copied into a writer of the agent's own, exactly once (FORMAT.md section 10).

Exactly once, whenever the agent is killed: a line is copied if its record is there. The limits are those of the position records: a file
that is rewritten while no agent runs, with the same beginning up to the last position, is taken for the one that it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

from simspool.sdk.provenance import scheduler
from simspool.sdk.validation import check_metric_name
from simspool.spool import Drop, Durability, InvalidRecord, Kind, Origin, Spool, SpoolError, UnreadableFile, Writer, blobs, ids, pressure
from simspool.spool.blobs import Blob

from . import quarantine
from .files import InboxFile, Line
from .lenient import MAX_LINE, NotUnderstood
from .lines import Entry, File, Metrics, Reader, artifact
from .positions import Reached, files_in, is_copied, note_copied, reached

_LIST_EVERY = 0.5  # s between two looks for new files
_POSITION_LINES, _POSITION_EVERY = 64, 1.0  # a batch begins with a position where the last one is so many lines, or s, ago
_RING_EVERY = 1000  # records: the rules are to see a backlog while it is copied
_SLICE = 2  # batches of one file before it is the next one's turn
_SMALL = 16 << 20  # bytes of a file that is copied at once; a larger one by another thread, while other lines go on
_FREE = 4 << 20  # bytes that must be free on the spool's disk: what it refuses would count as dropped
_IDLE = 10.0  # s until a quiet file is let go of
_BLANKS = b" \t\r\n\v\f"

Rung = Callable[[bytes], None]


class Refused(OSError):
    """Raised when the spool does not take a record: nothing is lost, the lines are there, and it is tried again."""


class RunInbox:
    """Look at it again and again with `copy`; `finish` when the run has ended. Confined to one thread.

    `rung` is told of what was recorded, as scripts ring. `aside` takes what takes long.
    """

    def __init__(self, spool: Spool, run: str, rung: Rung, aside: ThreadPoolExecutor) -> None:
        self.id, self._spool, self._folder = run, spool, spool.run(run)
        self._rung, self._aside = rung, aside
        self._reader = Reader(self._folder)
        self._files: dict[str, InboxFile] = {}
        self._reached: dict[str, Reached] | None = None
        self._telling: list[str] = []  # the writers that tell together how far the files are copied
        self._writer: Writer | None = None
        self._ring = b""
        self._at: tuple[InboxFile, int] | None = None  # whose line, of which epoch, the next record is, if there is no position before it
        self._since: dict[str, tuple[int, float]] = {}  # file -> lines and moment of its last position
        self._copying: dict[str, Future[Blob]] = {}
        self._upkeep: Future[None] | None = None
        self._unpublished: list[str] = []
        self._next_listing = 0.0
        self._last_news: dict[str, float] = {}
        self._told = 0  # the last sequence that others know of
        self._is_refused = False
        self.has_status = False  # a line said how the run ends

    @property
    def folder(self) -> str:
        """The inbox's folder."""
        return self._folder.inbox

    @property
    def exists(self) -> bool:
        """Whether the run has an inbox."""
        return os.path.isdir(self._folder.inbox)

    @property
    def is_waiting(self) -> bool:
        """Whether a large file is being copied, which lines wait for."""
        return bool(self._copying)

    # ------------------------------------------------------------------ copying

    def copy(self, *, listing: bool = False, final: bool = False) -> int:
        """Copy the lines that are there; returns how many were dealt with. Call it until nothing comes.

        With `final`, a last line without a newline counts too. Raises OSError and SpoolError, Refused when the spool takes nothing: what
        was not copied is the next call's.
        """
        if self._is_refused:
            self._ask_for_space()
        now = time.monotonic()
        if listing or now >= self._next_listing:
            self._next_listing = now + _LIST_EVERY
            for entry in files_in(self._folder):
                if entry.name not in self._files:
                    self._files[entry.name] = InboxFile(self._folder.inbox, entry.name, self._earlier().pop(entry.name, None))
        done = 0
        try:
            for name, file in self._files.items():
                done += self._look_at(name, file, now, final=final)
        except Refused:
            self._is_refused = True
            raise
        finally:
            self._tell(1)
        return done

    def _tell(self, least: int) -> None:
        """Ring where so many records are new."""
        if self._writer is not None and not 0 <= self._writer.sequence - self._told < least:  # less: it is another writer
            self._told = self._writer.sequence
            self._rung(self._ring)

    def _look_at(self, name: str, file: InboxFile, now: float, *, final: bool) -> int:
        done = self._copy_file(file, final=final) if final or name in self._copying or file.has_news() else 0
        if done or name in self._copying:
            self._last_news[name] = now
        elif now - self._last_news.setdefault(name, now) > _IDLE:
            file.close()
        return done

    def _earlier(self) -> dict[str, Reached]:
        if self._reached is None:
            self._reached, self._telling = reached(self._folder)
        return self._reached

    def _copy_file(self, file: InboxFile, *, final: bool) -> int:
        done, bad = 0, file.bad
        for _ in range(_SLICE):
            lines = file.lines(final=final)
            if not lines:
                break
            count, now = self._since.get(file.name, (_POSITION_LINES, 0.0))
            if count >= _POSITION_LINES or time.monotonic() - now >= _POSITION_EVERY:
                self._leave(file)
            for line in lines:
                if not self._copy_line(file, line):
                    return done
                done += 1
                self._tell(_RING_EVERY)
            if bad != file.bad:  # so that they are not read, and counted, again
                bad = file.bad
                self._place(file, None)
        return done

    def _copy_line(self, file: InboxFile, line: Line) -> bool:
        """Deal with a line; False while it waits for a file to be copied. Raises Refused."""
        if line.data is not None and not line.data.strip(_BLANKS):
            file.advance(line)
            return True
        try:
            if line.data is None or len(line.data) > MAX_LINE:
                raise NotUnderstood(f"the line is longer than {MAX_LINE} bytes")
            found = self._reader.understand(line.data)
            if found is None:
                self._leave(file)
                file.advance(line)
                return True
            if isinstance(found, File):
                blob = self._blob(file, found.path)
                if blob is None:
                    return False
                found = artifact(found, blob)
            if self._at != (file, file.epoch):
                self._place(file, line)
            self._record(file, found)
        except (NotUnderstood, InvalidRecord) as error:
            self._set_aside(file, line, str(error))
            return True
        file.advance(line)
        count, now = self._since[file.name]
        self._since[file.name] = count + 1, now
        return True

    def _record(self, file: InboxFile, found: Metrics | Entry) -> None:
        """Record a line. Raises InvalidRecord, Refused."""
        writer = self._open()
        if isinstance(found, Metrics):
            step = file.step if found.step is None else found.step
            kept = writer.metrics(found.values, step, found.time, found.timestamp)
            file.step += kept
        else:
            kept = writer.record(found.kind, found.body)
            self.has_status = self.has_status or found.kind == Kind.STATUS
        if not kept:
            raise Refused(writer.last_error or "the spool cannot be written")

    def _set_aside(self, file: InboxFile, line: Line, reason: str) -> None:
        """A line that is not understood: kept in the quarantine and counted. The file's first one is said in the run, in its place."""
        quarantine.keep(self._spool, self.id, file.name, file.epoch, line, reason)
        if not file.bad:
            where = f"byte {line.start} of {file.name}" + (f" (epoch {file.epoch})" if file.epoch > 1 else "")
            message = f"inbox: the line at {where} was not understood: {reason}. This and what is like it is kept in the spool's quarantine"
            if self._at != (file, file.epoch):
                self._place(file, line)
            self._record(file, Entry(Kind.EVENT, {"message": message[:2000], "level": "warning"}))
        file.bad += 1
        file.advance(line)
        self._leave(file)

    # ------------------------------------------------------------------ positions

    def _leave(self, file: InboxFile) -> None:
        """Have a position before the file's next record."""
        if self._at is not None and self._at[0] is file:
            self._at = None

    def _place(self, file: InboxFile, first: Line | None) -> None:
        """Record where the file is: what is recorded next are its lines from there on. Raises Refused."""
        writer = self._open()
        if not writer.record(Kind.INBOX, file.position(first).body()):
            self._at = None
            raise Refused(writer.last_error or "the spool cannot be written")
        self._at = file, file.epoch
        self._since[file.name] = 0, time.monotonic()

    # ------------------------------------------------------------------ files that lines name

    def _blob(self, file: InboxFile, path: str) -> Blob | None:
        """Keep a file's content; None while that takes its time. Raises NotUnderstood for one that cannot be read, and OSError."""
        try:
            going = self._copying.get(file.name)
            if going is None:
                self._ask_for_room()
                if os.path.isfile(path) and os.path.getsize(path) > _SMALL:
                    self._copying[file.name] = self._aside.submit(blobs.put_file, self._spool, self._folder, path)
                    return None
                blob = blobs.put_file(self._spool, self._folder, path)
            elif not going.done():
                return None
            else:
                del self._copying[file.name]
                blob = going.result()
        except UnreadableFile as error:
            raise NotUnderstood(error.strerror or str(error)) from None
        self._unpublished.append(blob.digest)
        return blob

    def _ask_for_room(self) -> None:
        """Raises NotUnderstood where the spool takes no files (docs/budgets.md): the line is kept in the quarantine, the file counted."""
        word = pressure.read(self._spool.path)
        if word is not None and word[0].level >= pressure.FILES:
            self._open().count_drop(Drop.BUDGET)
            raise NotUnderstood(f"no files are taken: {word[0].why}")

    def wait(self, seconds: float) -> None:
        """Wait for large files that are being copied, at most so long."""
        futures.wait(self._copying.values(), seconds)

    # ------------------------------------------------------------------ the writer

    def _open(self) -> Writer:
        """Return the writer, opened when it is first needed. Raises Refused."""
        if self._writer is not None:
            return self._writer
        if not os.path.isdir(self._folder.writers):
            raise Refused("the run was deleted")
        self._ask_for_space()
        writer = Writer(
            self._folder.writers, ids.from_text(self.id), durability=Durability.INTERVAL, origin=Origin.of_run(self._folder.info()),
            check_name=check_metric_name,
        )  # fmt: skip
        if not self._begin(writer):
            problem = writer.last_error
            writer.close()
            raise Refused(problem)
        self._told = 0
        self._writer, self._ring = writer, f"{writer.id_text} {self.id}".encode()
        return writer

    def _begin(self, writer: Writer) -> bool:
        """Record how far every file is, where all of them are known: then the writers before this one need not be asked again."""
        known = self._telling and not self._earlier() and all(file.is_open() for file in self._files.values())
        files = list(self._files.values()) if known else []
        body = {"reason": "inbox", **scheduler()} | ({"files": len(files), "after": self._telling} if known else {})
        kept = writer.record(Kind.ATTACH, body) and all(writer.record(Kind.INBOX, file.position(None).body()) for file in files)
        self._telling = [*(() if known and kept else self._telling), writer.id_text]
        return kept

    def _ask_for_space(self) -> None:
        """Raises Refused where the spool has none."""
        found = os.statvfs(self._spool.path)
        if found.f_bavail * found.f_frsize < _FREE:
            raise Refused("the spool's disk is full")
        self._is_refused = False

    def maintain(self) -> None:
        """Have what was recorded made durable, off this thread; about once a second."""
        if self._upkeep is not None and not self._upkeep.done():
            return
        writer = self._writer
        digests, self._unpublished = self._unpublished, []
        if writer is not None or digests:
            self._upkeep = self._aside.submit(self._maintain, writer, digests)

    def _maintain(self, writer: Writer | None, digests: list[str]) -> None:
        if writer is not None:
            writer.maintain()
        try:
            blobs.publish(self._spool, self._folder, digests)
        except OSError:
            self._unpublished += digests

    def release(self) -> None:
        """Close the writer and let go of the files. What comes later is copied into another writer."""
        if self._upkeep is not None:
            self._upkeep.exception()
        self._maintain(None, self._unpublished)
        writer, self._writer, self._at = self._writer, None, None
        if writer is not None:
            writer.close({"status": None})
            self._rung(self._ring)
        for file in self._files.values():
            file.close()

    def finish(self) -> bool:
        """The run has ended: copy what is left, close, and note that all of it is copied. False when something is to be waited for.

        Raises OSError and SpoolError.
        """
        while self.copy(listing=True, final=True):
            pass
        if self._copying:
            return False
        sizes = {file.name: file.offset for file in self._files.values() if not file.is_gone}
        self.release()
        if sizes and not is_copied(self._folder):
            note_copied(self._folder, sizes)
        return True


Problem = (OSError, SpoolError)
"""What a copy may raise."""
