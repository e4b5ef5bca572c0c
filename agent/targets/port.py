"""The target port: what a drain needs of a server, whatever it speaks. docs/targets.md tells what each target promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Effect = Literal["exactly-once", "idempotent", "at-least-once"]


class Unreachable(Exception):
    """Raised when a target cannot be reached, or answers with a temporary failure: retry later.

    `after` is the least number of seconds that it asked us to wait.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class Refused(Exception):
    """Raised when a target refuses us as a whole (a wrong token, a foreign protocol): retrying changes nothing by itself."""


class Foreign(Refused):
    """Raised by `connect` when a server answers that is not of the kind it was taken for."""


class TooLarge(Exception):
    """Raised when a target takes only smaller requests: cut smaller."""


class NotNow(Exception):
    """Raised when a target has no room for a file at present, but takes other things: it is tried again after `after` seconds."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


class Poison(Exception):
    """Raised when a target calls a request itself bad, without saying which range: send them one by one."""


@dataclass(frozen=True, slots=True)
class Range:
    """Consecutive records of one writer in one segment, ready to send: `data` as docs/drain-protocol.md has it, head included.

    `doubtful`: an earlier request with this very range (same `first` and `last`) was sent, and nothing is known of its end. `again`: one
    record that the target refused before, out of order; of its verdict, only the kind, `refused` and `remarks` count.
    """

    run: str
    writer: str
    first: int
    last: int
    data: bytes
    chain_after: int
    segment: int
    end: int
    doubtful: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Remark:
    """What a target has not taken as it was recorded, though it took the record, for people to know.

    `what` is one of few words that are the same for every run ("renamed", "clamped", "merged", "truncated", "not kept", "possibly double");
    `detail` names the thing ("metric a#b as a_b"). `count` is how many records or points it is about. (writer, first, what, detail) is its
    identity: the same one again replaces it.
    """

    run: str
    what: str
    detail: str
    count: int
    writer: str
    first: int

    @property
    def row(self) -> tuple[str, int, str, str, str, int]:
        """It as the journal has it."""
        return self.writer, self.first, self.what, self.detail, self.run, self.count


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a target says of a range.

    `accepted`: durable there; `refused` names records that it will never take, `remarks` what is different there. `retry`: it has the
    writer only up to `mark`. `permanent`: it will never take it, for `reason`. `unsent`: not tried, or failed in a way that may pass, for
    `reason`; `after` is the least number of seconds that it asked us to wait.
    """

    kind: Literal["accepted", "retry", "permanent", "unsent"]
    mark: int = 0
    chain: int = 0
    reason: str = ""
    refused: list[tuple[int, str]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may carry: bytes as sent and before compression, and ranges; and the largest blob, in bytes."""

    body: int = 16 << 20
    decoded: int = 16 << 20
    ranges: int = 1000
    blob: int = 1 << 40


@dataclass(frozen=True, slots=True)
class Traits:
    """What sort of target it is.

    `effect` is what a record that is sent again does there. `files_by_record`: every artifact record is sent (a run has files of its own
    there), not every content once. `senders` requests with records may be under way at a time, and `uploaders` files. At a connect,
    so many of the latest receipts are `audited`.
    """

    effect: Effect = "exactly-once"
    files_by_record: bool = False
    senders: int = 2
    uploaders: int = 6
    audited: int = 100


@dataclass(frozen=True, slots=True)
class File:
    """A file to send. `key` is what its receipt is for: the digest, or with `files_by_record` the record that names it ("writer.sequence").

    The rest of the fields are of that record, or of the first one that names the digest. `size` is in bytes, `wall` in ns.
    """

    key: str
    digest: str
    size: int
    run: str
    writer: str
    seq: int
    name: str
    category: str
    mime: str


@dataclass(frozen=True, slots=True)
class Recount:
    """What a target has of one run, counted there.

    `metrics`: name there -> points; `events`; `files`: name there -> SHA-256 hex, or size in bytes where it tells no digest; `status` in
    our words, or None where it has none. `first` and `last`: name there -> (step, value), where it can tell. `names` maps our names of
    metrics to those there, where they differ. `marks`: writer -> last sequence it has, where it keeps them.
    """

    metrics: Mapping[str, int]
    events: int
    files: Mapping[str, str | int]
    status: str | None = None
    first: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    last: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, int] = field(default_factory=dict)


class Memory(Protocol):
    """What a target notes durably for itself, in the spool's journal, under the server's own id; and what is known of runs."""

    async def recall(self, keys: Sequence[str]) -> dict[str, str]:
        """Return what was noted under these keys; those without a note are left out."""

    async def note(self, items: Mapping[str, str]) -> None:
        """Note values; fsynced when it returns. Raises OSError when the journal cannot be written."""

    async def run_state(self, run: str) -> dict[str, Any]:
        """Return the state of a run as far as it is ingested: the fold of spool/runstate.py (empty for one that is not known)."""


class Target(Protocol):
    """A server that takes ranges and files.

    All methods raise Unreachable for what may pass and Refused for what will not. `url` names it and nothing else: two targets with one
    url are the same. It never holds a secret.
    """

    url: str

    @property
    def traits(self) -> Traits:
        """What sort it is; may change at a connect."""

    async def connect(self) -> tuple[str, Limits]:
        """Return the server's own id and its limits."""

    def bind(self, memory: Memory) -> None:
        """Take the memory for the server that the last `connect` found. Called after each, before anything is sent."""

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """Send ranges in one request or a few; one verdict each. An `accepted` range is durable on the target.

        Raises TooLarge and Poison as well, where nothing of it was taken.
        """

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int] | None:
        """Return the last sequence that the target has of each (run, writer), 0 for none; None where it cannot tell."""

    async def missing(self, files: Sequence[File]) -> list[str]:
        """Return the keys of those whose bytes the target does not have (or that we may not know it has)."""

    async def put(self, file: File, path: str) -> str | None:
        """Send a file's bytes; None when the target has them, else the reason why it never will. Raises NotNow as well."""

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Tell which runs live, with the wall time (s) at which that was seen.

        Returns the abort flags that are up, by run: {"reason", "at"?, "writers"?}, as docs/drain-protocol.md has them.
        """

    async def recount(self, run: str) -> Recount | None:
        """Count what the target has of a run; None when it does not know the run."""

    async def close(self) -> None:
        """Let go of connections."""
