"""What is known of a run on a Simvue server, and of a range on its way there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .port import Range, Remark
from .simvue_books import Books
from .simvue_words import Item, Plan

DOUBLE = "possibly double"


class Never(Exception):
    """Raised when a server will not have a run at all, or not what is to be noted of it."""


@dataclass(slots=True)
class Known:
    """A run that is there. `digests` of the fields that were sent last; `names` of metrics, ours to theirs."""

    id: str
    books: Books
    metadata: dict[str, Any] = field(default_factory=dict)
    alerts: dict[str, tuple[str, str, str | None]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    made: bool = False  # just now, with its state


@dataclass(slots=True)
class Job:
    """One range on its way. `had`: how many of its points and events were there before; `refused`: what the server refuses of it."""

    sent: Range
    plan: Plan
    after: int
    points: list[Item]
    events: list[Item]
    had: tuple[int, int] = (0, 0)
    refused: dict[int, str] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def remark(self, what: str, detail: str, count: int = 1) -> None:
        """Note what is different there."""
        self.remarks.append(Remark(self.sent.run, what, detail, count, self.sent.writer, self.sent.first))
