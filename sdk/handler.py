"""Python's logging into a run's events."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Level, Run

_OWN = ("simspool", "simvue")


class Handler(logging.Handler):
    """Records each message as an event of the run, with its level.

    Messages of simspool's own loggers are left out. After the run is closed, messages are ignored.
    """

    def __init__(self, run: Run, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        """Record one message; a failure goes to logging's own error handling, never into the caller."""
        if record.name.partition(".")[0] in _OWN or self._run.is_closed:
            return
        try:
            self._run.log_event(self.format(record), log_level=_level(record.levelno))
        except Exception:  # noqa: BLE001 - the contract of logging
            self.handleError(record)


def _level(number: int) -> Level:
    levels: tuple[tuple[int, Level], ...] = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"))
    return next((name for least, name in levels if number >= least), "debug")
