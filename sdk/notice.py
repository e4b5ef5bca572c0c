"""One line on stderr: the only way in which the SDK speaks to the user's terminal. Names of files in it steer nothing there."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line to stderr, where there is one. Never raises, also not inside a signal handler that interrupts a print."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"simspool: {_safe(text)}\n")
            sys.stderr.flush()
    except Exception:  # noqa: BLE001, S110 - a closed or broken stderr must not reach the run
        pass


def _safe(text: str) -> str:
    """Show controls, escapes and direction marks as escape sequences. What follows a newline is indented: it begins no message."""
    if text.isprintable():
        return text
    lines = text.split("\n")
    return "\n  ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)
