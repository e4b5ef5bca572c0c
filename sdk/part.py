"""What the parts of Run (saving, alerts, aborts) share: the ways of recording that Run itself provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simspool.spool import Kind, Writer

    from .recording import Recording


class Part(ABC):
    """A part of Run. What Run adds to it: its writer, and what it makes of a mistake."""

    _recording: Recording | None

    @abstractmethod
    def _ready(self, what: str) -> Writer | None:
        """Return the writer to record with, None when nothing is to be recorded (then `_default` is the answer)."""

    @abstractmethod
    def _default(self) -> bool:
        """Return what a call returns that records nothing."""

    @abstractmethod
    def _mistake(self, error: Exception) -> bool:
        """Raise the caller's mistake, or go dormant with it and return False."""

    @abstractmethod
    def _record(self, kind: Kind, body: dict[str, Any]) -> bool:
        """Record a body; False for a drop that was counted."""
