"""One channel's thread: it tries what is to be told, records what came of it, and tries again. What hangs here hangs nothing else."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from simspool.agent.drain.backoff import Backoff

from .channels import Carrier, NotDelivered
from .message import compose, digest_id
from .queue import DAY, Notice, Tried
from .settings import Channel

_MINUTE = 60.0
_REFUSED = 3600.0  # s until what was refused is tried again
_SLOWEST = 900.0  # s between two tries, hours after the first
_MOST = 500  # notices in one digest
_IDLE = 60.0
PATIENCE = 5.0  # s that the end of the agent waits for a delivery
_FEW, _SOON = 3, 10.0  # tries of a one-shot, and the longest wait (s) for the next one

Record = Callable[[Notice, dict[str, Any]], bool]
"""Records a notification in the notice's run; False when it is to be tried again."""


@dataclass(slots=True)
class _Item:
    notice: Notice
    attempt: int
    first: float | None  # wall s of the first try
    doubtful: bool  # it may have been delivered
    digest: str | None
    not_before: float = 0.0
    error: str = ""
    tries: int = 0  # of this process
    refused: bool = False


class Sender:
    """Start it, then `offer` what is pending, again and again: what was told since is left out.

    The guarantee: what was recorded as sent is not sent again; what was begun and never recorded as sent or failed (the agent was
    killed) is sent again, as the same message with the same id.
    """

    def __init__(
        self, settings: Channel, carrier: Carrier, record: Record, abandoned: Callable[[Notice, str], None],
        report: Callable[[str], None], *, backoff: Backoff | None = None, wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._carrier, self._record, self._abandoned, self._report = carrier, record, abandoned, report
        self._backoff, self._wall = backoff or Backoff(), wall
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._items: dict[str, _Item] = {}
        self._done: set[str] = set()
        self._unrecorded: list[tuple[Notice, dict[str, Any]]] = []
        self._recent: deque[float] = deque()
        self._not_before = 0.0
        self._stopping = False
        self.problem = ""
        self._thread = threading.Thread(target=self._work, name=f"simspool-{settings.name}", daemon=True)

    # ------------------------------------------------------------------ from other threads

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Cut off what is being delivered; begin nothing more."""
        self._stopping = True
        self._news.set()
        self._carrier.stop()

    def stop(self, patience: float = PATIENCE) -> None:
        """End. What cannot be cut off within `patience` s is left behind."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join(patience)

    def offer(self, pending: Iterable[tuple[Notice, Tried]], hold: Collection[str] = ()) -> None:
        """Take what the records say is pending now. Of the runs in `hold`, nothing new is begun."""
        with self._lock:
            listed = set()
            for notice, tried in pending:
                listed.add(notice.id)
                known = self._items.get(notice.id)
                if known is not None:
                    known.notice = notice
                elif notice.id not in self._done and notice.run not in hold:
                    first = None if tried.first is None else tried.first / 1e9
                    self._items[notice.id] = _Item(notice, tried.attempt, first, tried.state == "trying", tried.digest)
            self._done &= listed  # the records have the others
            for gone in self._items.keys() - listed:
                del self._items[gone]  # a run that was resumed, or deleted
        self._news.set()

    def retry(self) -> None:
        """Try again now: the network or the configuration changed."""
        with self._lock:
            self._not_before = 0.0
            for item in self._items.values():
                item.not_before = 0.0
        self._news.set()

    def waiting(self) -> int:
        """Return how many notices wait."""
        with self._lock:
            return len(self._items) + len(self._unrecorded)

    def is_busy(self) -> bool:
        """Say whether something waits that was not tried in vain already: what a one-shot waits for."""
        with self._lock:
            soon = self._not_before < time.monotonic() + _SOON
            return (soon and any(item.tries < _FEW and not item.refused for item in self._items.values())) or bool(self._unrecorded)

    def runs(self) -> set[str]:
        """Return the runs of what waits."""
        with self._lock:
            return {item.notice.run for item in self._items.values()} | {notice.run for notice, _ in self._unrecorded}

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while not self._stopping:
            self._news.clear()
            try:
                self._record_again()
                batch, pause = self._next(time.monotonic())
                if batch:
                    self._try(batch)
                    continue
            except Exception as error:  # noqa: BLE001 - the thread must not end; what fails is reported, and tried again
                self._say(f"{type(error).__name__}: {error}; please report this")
                pause = _IDLE
            self._news.wait(min(pause, _IDLE, 5.0 if self._unrecorded else _IDLE))

    def _next(self, now: float) -> tuple[list[_Item], float]:
        """Return what to send now, as one message; or nothing, and how long to wait (s)."""
        with self._lock:
            if now < self._not_before:
                return [], self._not_before - now
            ready = [item for item in self._items.values() if item.not_before <= now]
            if not ready:
                return [], min((item.not_before - now for item in self._items.values()), default=_IDLE)
            while self._recent and self._recent[0] <= now - _MINUTE:
                self._recent.popleft()
            limit = self.settings.per_minute
            room = limit - len(self._recent) if limit else len(ready)
            if room <= 0:
                return [], self._recent[0] + _MINUTE - now
            ready.sort(key=lambda item: (item.attempt, item.notice.at, item.notice.id))
            head = ready[0]
            if head.doubtful:  # it is sent again as it was
                return [i for i in ready if i.digest == head.digest] if head.digest else [head], 0.0
            fresh = [item for item in ready if not item.doubtful]
            return ([head] if len(fresh) <= room else fresh[:_MOST]), 0.0

    def _try(self, batch: list[_Item]) -> None:
        repeated = any(item.doubtful for item in batch)
        known = batch[0].digest if repeated else None
        notices = sorted((item.notice for item in batch), key=lambda notice: (notice.at, notice.id))
        digest = known or (digest_id(notices) if len(batch) > 1 else None)
        message = compose(notices, repeated=repeated, digest=digest)
        begun = False
        for item in batch:
            item.attempt += 1
            item.tries += 1
            item.first = item.first or self._wall()

        def begin() -> None:
            nonlocal begun
            if self._stopping:
                raise NotDelivered("the agent stops")
            begun = True
            for item in batch:
                self._note(item, "trying", digest)

        try:
            said = self._carrier.deliver(message, begin)
        except NotDelivered as error:
            self._failed(batch, error, begun)
        except Exception as error:  # noqa: BLE001 - whatever a library raises: it was not delivered
            self._failed(batch, NotDelivered(f"{type(error).__name__}: {error}"), begun)
        else:
            for item in batch:
                self._note(item, "sent", digest, said)
            with self._lock:
                self._recent.append(time.monotonic())
                for item in batch:
                    self._items.pop(item.notice.id, None)
                    self._done.add(item.notice.id)
                self._backoff.succeeded()
            self._say("")

    def _failed(self, batch: list[_Item], error: NotDelivered, begun: bool) -> None:
        if self._stopping and (error.doubtful or not begun):
            return  # it was cut off: the next agent finds it as the records have it
        why, now, wall = str(error), time.monotonic(), self._wall()
        for item in batch:
            item.refused = error.refused
            over = item.attempt >= _FEW and wall - (item.first or wall) > DAY
            if over:
                self._note(item, "abandoned", None, why)
                self._abandoned(item.notice, why)
            elif error.doubtful:
                item.doubtful = True  # the record of the try stands
            else:
                if begun or why != item.error or item.attempt & (item.attempt - 1) == 0:  # many alike are told by a few
                    self._note(item, "failed", None, why)
                item.doubtful, item.digest = False, None
            item.error = why
            with self._lock:
                item.not_before = now + _REFUSED if error.refused else 0.0
                if over:
                    self._items.pop(item.notice.id, None)
                    self._done.add(item.notice.id)
        with self._lock:
            if error.refused:
                self._not_before = now + _REFUSED if error.everything else 0.0
            else:
                age = wall - min(item.first or wall for item in batch)
                self._not_before = now + self._backoff.failed(min(max(age, 0.0) / 10, _SLOWEST))
        self._say(why)

    # ------------------------------------------------------------------ records

    def _note(self, item: _Item, state: str, digest: str | None, error: str = "") -> None:
        body: dict[str, Any] = {"id": item.notice.id, "channel": self.settings.name, "state": state, "attempt": item.attempt}
        if digest:
            body["digest"] = digest
            item.digest = digest
        if error:
            body["error"] = error
        if not self._record(item.notice, body) and state in {"sent", "abandoned"}:
            with self._lock:
                self._unrecorded.append((item.notice, body))

    def _record_again(self) -> None:
        with self._lock:
            left, self._unrecorded = self._unrecorded, []
        kept = [(notice, body) for notice, body in left if not self._record(notice, body)]
        with self._lock:
            self._unrecorded += kept

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            name = self.settings.name
            self._report(f"notifications by {name}: {problem}; it is tried again" if problem else f"notifications by {name} are sent again")
        self.problem = problem
