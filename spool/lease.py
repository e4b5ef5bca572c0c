"""The lease of a spool: which of several hosts' agents drains it, prunes it and judges what nobody watched (FORMAT.md section 14).

A lease is a file `agent/lease-<generation>.jsonl`, made exclusively. Its holder rewrites the first line every few seconds. Who sees by its
own clock that this line has not changed for `PATIENCE`, or knows that the process is dead, makes the next generation, and says so in the
second line of the old file, where the old holder looks. The third line is for those who want it.

It is an efficiency. A holder that was suspended may act for a moment beside the next one: that this does no harm, journaled receipts and
exactly-once servers see to. No wall clock and no time stamp of a file is ever compared.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from . import atomic, ids
from .layout import Spool
from .process import is_alive, start_ticks, this_host

PATIENCE = 60.0  # s of silence after which a holder is taken for gone
LINE = 512  # bytes of each of the three lines
_NAME = re.compile(r"lease-([0-9]{1,15})\.jsonl")
_MINE, _NEXT, _WANTED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Holder:
    """An agent's process, as a lease names it. `id` is its own for its life."""

    id: str
    host: str
    machine: bytes
    boot_id: bytes
    pid_namespace: int
    pid: int
    start_ticks: int

    @classmethod
    def this(cls) -> Self:
        """Return this process, with a new id."""
        here, pid = this_host(), os.getpid()
        found = start_ticks(pid)
        return cls(
            ids.to_text(ids.new_id()), here.name, here.machine, here.boot_id, here.pid_namespace, pid, found[0] if found else 0
        )  # fmt: skip

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self | None:
        """Return the holder that a lease's first line names, None where it names none."""
        try:
            found = cls(
                body["holder"], body["host"], bytes.fromhex(body["machine"]), bytes.fromhex(body["boot_id"]), body["pid_namespace"],
                body["pid"], body["start_ticks"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            return None
        numbers = (found.pid_namespace, found.pid, found.start_ticks)
        return found if isinstance(found.id, str) and isinstance(found.host, str) and all(type(n) is int for n in numbers) else None

    def body(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "holder": self.id, "host": self.host[:64], "machine": self.machine.hex(), "boot_id": self.boot_id.hex(),
            "pid_namespace": self.pid_namespace, "pid": self.pid, "start_ticks": self.start_ticks,
        }  # fmt: skip


def boot_clock() -> float:
    """Return seconds on the boot clock: it counts suspended time, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """One agent's view of a spool's lease. Safe to use from several threads. Times are seconds on `clock`.

    Call `turn` about once a second. `held` is what the last look found; `still` looks again, and is to be asked before what another
    holder must not do as well. `floor` is the highest generation that is known from elsewhere. Methods that touch the disk raise OSError.
    """

    def __init__(
        self, spool: Spool, *, patience: float = PATIENCE, clock: Callable[[], float] = boot_clock, me: Holder | None = None,
        lives: Callable[[Holder], bool | None] = is_alive,
    ) -> None:  # fmt: skip
        self._folder, self._patience, self._clock, self._lives = spool.agent, patience, clock, lives
        self.me = me or Holder.this()
        self._lock = threading.RLock()
        self.held = False
        self.mine = 0  # the generation that this agent held last
        self.floor = 0
        self.highest = 0  # the highest generation that was seen
        self.holder: Holder | None = None  # who has it, as the last look found; None where nobody does, or that cannot be read
        self.holder_reaches = True  # whether the holder, as the last look found, reaches what it is to send to
        self.is_wanted = False  # by another agent, of this one
        self.reaches = True  # said to others while it is held
        self._beats, self._beat_at, self._held_since = 0, 0.0, 0.0
        self._seen: tuple[int, bytes] = (0, b"")
        self._silent, self._looked = 0.0, clock()
        self._wants: float | None = None  # for how long, counted as silence is
        self._shy_until = float("-inf")

    # ------------------------------------------------------------------ looking

    def turn(self) -> bool:
        """Look once, and do what is due: renew it, or take it where it is free. True while it is held."""
        with self._lock:
            return self._keep() if self.held else self._try()

    def still(self) -> bool:
        """Say whether it is held at this moment, as far as the disk tells. One read of a small file; what cannot be read is not held."""
        with self._lock:
            if not self.held:
                return False
            try:
                if self._is_lost():
                    return False
                if self._clock() - self._beat_at > self._patience / 2:  # somebody may be about to take it: say first that we live
                    self._renew()
                    return not self._is_lost()
            except OSError:
                return False
            return True

    @property
    def is_fresh(self) -> bool:
        """Whether it is held, and was renewed so lately that nobody else can have it. Reads nothing."""
        return self.held and self._clock() - self._beat_at < self._patience / 2

    @property
    def is_elsewhere(self) -> bool:
        """Whether another agent has it, and was not silent for too long."""
        return not self.held and self.holder is not None and self._silent < self._patience

    def _keep(self) -> bool:
        if self._is_lost():
            return False
        now = self._clock()
        if now - self._beat_at >= self._patience / 6:
            self._renew()
            if now - self._held_since > self._patience:
                self._remove_old(self.mine)
        return True

    def _is_lost(self) -> bool:
        """Look whether somebody has made the next generation; note who wants this one."""
        found = self._read(self.mine)
        wanted = found[_WANTED].get("wanted") if found is not None else None
        self.is_wanted = isinstance(wanted, str) and wanted != self.me.id
        highest = self._find_highest()
        if found is None or found[_NEXT] or highest > self.mine:
            self.held, self.is_wanted, self.holder = False, False, None
            self.highest = max(self.highest, highest)
            self._silent, self._looked = 0.0, self._clock()
            return True
        return False

    def _try(self) -> bool:
        generation, now = self._find_highest(), self._clock()
        self.highest = max(generation, self.highest)
        if generation == 0:
            self.holder = None
            return self._take(max(self.floor, self.highest) + 1, 0)
        raw = self._raw(generation)
        if raw is None:  # it was removed at this moment
            return False
        key = (generation, raw[:LINE])
        # a look after a long pause says nothing of the pause: it may have been this agent that was suspended
        passed, self._looked = min(now - self._looked, self._patience / 4), now
        self._silent = self._silent + passed if key == self._seen else 0.0
        self._seen = key
        body = _lines(raw)[_MINE]
        self.holder, self.holder_reaches = Holder.of(body), body.get("reaches") is not False
        if self._wants is not None:
            self._wants += passed
        if body.get("released"):
            self.holder = None
            free = now >= self._shy_until or self._wants is not None
        else:
            gone = self.holder is not None and self._lives(self.holder) is False
            # what nobody can read was made a moment ago, or is what a power cut left
            patience = self._patience if self.holder is not None else self._patience / 6
            free = gone or max(self._silent, self._wants or 0.0) >= patience
        return self._take(max(generation, self.floor) + 1, generation) if free else False

    # ------------------------------------------------------------------ taking, renewing, giving back

    def _take(self, generation: int, before: int) -> bool:
        atomic.make_folder(self._folder)
        try:  # exclusive on every file system that is one, NFS and SFTP included; links and renames are not
            fd = os.open(self._path(generation), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return False
        os.close(fd)
        self.mine = self.highest = generation
        self._held_since = self._clock()
        self._renew()
        if before:
            self._write(before, _NEXT, {"next": generation, "holder": self.me.id})
            self._remove_old(before)
        self.held, self.holder, self.is_wanted, self._wants = True, self.me, False, None
        return True

    def _renew(self) -> None:
        now = self._clock()
        self._beats += 1
        said = {} if self.reaches else {"reaches": False}
        self._write(self.mine, _MINE, {"generation": self.mine, **self.me.body(), "beat": self._beats, **said})
        self._beat_at = now

    def want(self) -> None:
        """Ask the holder for it: it gives it back at its next safe point; one that does not answer for `PATIENCE` loses it."""
        with self._lock:
            if not self.held:
                self._wants = 0.0 if self._wants is None else self._wants
                generation = self._find_highest()
                if generation:
                    self._write(generation, _WANTED, {"wanted": self.me.id})

    def want_no_more(self) -> None:
        """Ask no more: whoever has it may keep it."""
        with self._lock:
            self._wants = None

    def release(self) -> None:
        """Give it back: the next one need not wait. Harmless when it is not held. After that, others go first for a time."""
        with self._lock:
            self._wants = None
            if self.held:
                self.held = self.is_wanted = False
                self.holder = None
                self._shy_until = self._clock() + self._patience / 4
                self._write(self.mine, _MINE, {"generation": self.mine, **self.me.body(), "beat": self._beats, "released": True})

    def _remove_old(self, least: int) -> None:
        for generation in self._generations():
            if generation < least:
                atomic.remove(self._path(generation))

    # ------------------------------------------------------------------ files

    def _path(self, generation: int) -> str:
        return os.path.join(self._folder, f"lease-{generation}.jsonl")

    def _generations(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [int(found[1]) for name in names if (found := _NAME.fullmatch(name))]

    def _find_highest(self) -> int:
        return max(self._generations(), default=0)

    def _raw(self, generation: int) -> bytes | None:
        """Return a lease's bytes; it is opened anew each time, which is when NFS asks the server."""
        try:
            fd = os.open(self._path(generation), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            return os.pread(fd, 3 * LINE, 0)
        finally:
            os.close(fd)

    def _read(self, generation: int) -> list[dict[str, Any]] | None:
        raw = self._raw(generation)
        return None if raw is None else _lines(raw)

    def _write(self, generation: int, line: int, body: Mapping[str, Any]) -> None:
        """Write one line, in one call: each has one sort of writer, and a length that never changes."""
        text = json.dumps(body).encode().ljust(LINE - 1)[: LINE - 1] + b"\n"
        try:
            fd = os.open(self._path(generation), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return  # it is over, and removed: whoever is concerned finds that out
        try:
            os.pwrite(fd, text, line * LINE)
        finally:
            os.close(fd)


def _lines(raw: bytes) -> list[dict[str, Any]]:
    """Return the three lines; what is not there, or half there, is empty."""
    found = []
    for n in (_MINE, _NEXT, _WANTED):
        try:
            body = json.loads(raw[n * LINE : (n + 1) * LINE].strip(b"\0 \n") or b"{}")
        except ValueError:
            body = {}
        found.append(body if isinstance(body, dict) else {})
    return found
