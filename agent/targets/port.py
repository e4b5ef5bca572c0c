"""The target port: what a drain needs of a server, whatever it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Unreachable(Exception):
    """Raised when a target cannot be reached, or answers with a temporary failure: retry later.

    `after` is the least number of seconds that it asked us to wait.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class Refused(Exception):
    """Raised when a target refuses us as a whole (a wrong token, a foreign protocol): retrying changes nothing by itself."""


class TooLarge(Exception):
    """Raised when a target takes only smaller requests: cut smaller."""


class Poison(Exception):
    """Raised when a target calls a request itself bad, without saying which range: send them one by one."""


@dataclass(frozen=True, slots=True)
class Range:
    """Consecutive records of one writer in one segment, ready to send: `data` as docs/drain-protocol.md has it, head included."""

    run: str
    writer: str
    first: int
    last: int
    data: bytes
    chain_after: int
    segment: int
    end: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a target says of a range: `accepted`, `retry` (with its mark) or `permanent` (with the reason)."""

    kind: str
    mark: int = 0
    chain: int = 0
    reason: str = ""
    refused: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may carry: bytes as sent and before compression, and ranges; and the largest blob, in bytes."""

    body: int = 16 << 20
    decoded: int = 16 << 20
    ranges: int = 1000
    blob: int = 1 << 40


class Target(Protocol):
    """A server that takes ranges and blobs.

    All methods raise Unreachable for what may pass and Refused for what will not.
    """

    url: str

    async def connect(self) -> tuple[str, Limits]:
        """Return the server's own id and its limits."""

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """Send ranges in one request; one verdict each. An `accepted` range is durable on the target.

        Raises TooLarge and Poison as well.
        """

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Return the digests whose bytes the target does not have (or that we may not know it has)."""

    async def put(self, digest: str, path: str) -> str | None:
        """Send a blob's bytes; None when the target has them, else the reason why it never will."""

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Tell which runs live, with the wall time (s) at which that was seen.

        Returns the abort flags that are up, by run: {"reason", "at"?, "writers"?}, as docs/drain-protocol.md has them.
        """

    async def close(self) -> None:
        """Let go of connections."""
