"""One line on stderr: the only way in which the SDK speaks to the user's terminal."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line to stderr, where there is one. Never raises, also not inside a signal handler that interrupts a print."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"simspool: {text}\n")
            sys.stderr.flush()
    except Exception:  # noqa: BLE001, S110 - a closed or broken stderr must not reach the run
        pass
