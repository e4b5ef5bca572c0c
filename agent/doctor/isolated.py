"""Each look in a process of its own, so that one that raises, crashes or hangs (a dead network disk) costs its time, and no other look.

What it found before is kept. A process that waits in the kernel for a dead disk may stay until the disk answers; nobody waits for it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

from simspool.spool import SpoolError

from .findings import Check, Finding, Site

_GRACE = 2.0  # s that a look gets to clear up after itself
_LONGEST = 2000  # characters of a text
_SHORTEST_SECRET = 6


class _TimeIsUp(BaseException):
    """Raised inside a look when its time is over."""


def look(check: Check, site: Site) -> Iterator[Finding]:
    """Yield what a check finds. Whatever happens in it, this ends within its time and a grace; what went wrong is a finding of its own."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: the child uses nothing that they may hold
        pid = os.fork()
    if pid == 0:
        _child(check, site, read, write)
    os.close(write)
    said, hung = _hear(read, check.seconds)
    if hung:
        os.kill(pid, signal.SIGTERM)
        more, still = _hear(read, _GRACE)
        said += more
        if still:
            os.kill(pid, signal.SIGKILL)
    os.close(read)
    status = _reaped(pid)
    for line in said.splitlines():
        try:
            yield Finding(**json.loads(line))
        except (ValueError, TypeError):  # its last line, cut off
            continue
    if hung:
        instead = "the disk, or a program that was asked, does not answer: look at it (`df`, `ls`) and try again"
        yield Finding(check.name, "fail", f"it did not come to an end within {check.seconds:g} s", instead, {"hung": True})
    elif status is None or status != 0:
        how = "it does not end" if status is None else f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        yield Finding(check.name, "fail", f"the look itself broke ({how})", "this is a bug of simspool: please report it")


def _hear(read: int, seconds: float) -> tuple[str, bool]:
    """Return what comes until the end, or until the time is over; and whether that was so."""
    deadline, parts = time.monotonic() + seconds, list[bytes]()
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            data = os.read(read, 1 << 16)
            if not data:
                return b"".join(parts).decode(errors="replace"), False
            parts.append(data)
    return b"".join(parts).decode(errors="replace"), True


def _reaped(pid: int) -> int | None:
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _child(check: Check, site: Site, read: int, write: int) -> None:
    """Look, say line by line what is found, and end. Never returns."""
    status = 1
    try:
        os.close(read)
        silence = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(silence, fd)

        def stop(number: int, frame: FrameType | None) -> None:
            raise _TimeIsUp

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(check.seconds + 2 * _GRACE) + 1)  # also where nobody is there any more to end it
        hidden = [token for token in site.secrets() if len(token) >= _SHORTEST_SECRET]
        try:
            for finding in check.look(site):
                _say(write, finding.as_dict(), hidden)
        except (SpoolError, OSError) as error:
            _say(write, Finding(check.name, "fail", str(error)).as_dict(), hidden)
        except Exception as error:  # noqa: BLE001 - one look that breaks is a finding, and no reason to leave out the others
            _say(write, Finding(check.name, "fail", f"{type(error).__name__}: {error}").as_dict(), hidden)
        status = 0
    except _TimeIsUp:
        status = 0
    finally:
        os._exit(status)


def _say(write: int, found: dict[str, Any], hidden: list[str]) -> None:
    text = {key: value[:_LONGEST] if isinstance(value, str) else value for key, value in found.items()}
    line = json.dumps(text, default=str)
    for token in hidden:  # no look shows one; an error's text from somewhere else might
        line = line.replace(json.dumps(token)[1:-1], "***")
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(write, data) :]
