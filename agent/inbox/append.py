"""Appending a line to a run's inbox, as `agent log` does: several processes of a host at a time, each line whole.

Loads nothing of this project and no library, so that `agent log metric` in a loop costs little more than an interpreter's start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

_NAME_BYTES = 200
_LEVELS = (["debug"], ["info"], ["warning"], ["error"], ["critical"])


def append(inbox: str, line: Mapping[str, Any]) -> str:
    """Append a line to this host's file in an inbox; returns the file's path. On return, the whole line is in the page cache.

    Raises OSError when the disk refuses; then nothing of the line is there. A line that another process was killed in is closed first.
    """
    path = os.path.join(inbox, f"log-{_safe(os.uname().nodename)}.jsonl")
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        data = json.dumps(line, sort_keys=True).encode() + b"\n"
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
    return path


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).encode()[:_NAME_BYTES].decode(errors="ignore") or "host"


def moment(inbox: str) -> dict[str, Any]:
    """Return `timestamp` of this moment, and `time` (s since the run's start) where the run says when that was."""
    found: dict[str, Any] = {"timestamp": utc_text(time.time_ns() // 1000)}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(os.path.join(os.path.dirname(inbox), "run.json"), "rb") as f:
        origin = json.load(f)["origin"]
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            same = boot.read().strip().replace("-", "") == origin["boot_id"]
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - origin["boot"] if same else time.time_ns() - origin["wall"]
        found["time"] = now / 1e9
    return found


def utc_text(micros: int) -> str:
    """Return a time (µs since 1970 UTC) in the form that servers understand."""
    seconds, rest = divmod(micros, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:06d}"


# ------------------------------------------------------------------ the short way


def quick(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Do `agent log metric NAME=NUMBER ... [--step N]` and `agent log event TEXT [--level LEVEL]`, in a run that SIMSPOOL_INBOX names.

    False for everything else, also for what is wrong: the command itself then does it, and says why not.
    """
    inbox = environ.get("SIMSPOOL_INBOX", "")
    named = environ.get("SIMSPOOL_RUN")
    if not arguments or not os.path.isdir(inbox) or named not in {None, os.path.basename(os.path.dirname(inbox))}:
        return False
    what, *rest = arguments
    line = _quick_metrics(rest) if what == "metric" else _quick_event(rest) if what == "event" else None
    if line is None:
        return False
    try:
        append(inbox, line | _moment_of(line, inbox))
    except OSError:
        return False
    return True


def _quick_metrics(given: Sequence[str]) -> dict[str, Any] | None:
    values: dict[str, float | int] = {}
    line: dict[str, Any] = {"metrics": values}
    words = iter(given)
    for word in words:
        try:
            if word == "--step":
                line["step"] = int(next(words, ""))
                if line["step"] < 0:
                    return None
            elif word.startswith("-"):
                return None
            else:
                name, _, text = word.rpartition("=")
                if not _is_plain(name):
                    return None
                values[name] = int(text) if text.isascii() and text.isdecimal() else float(text)
        except ValueError:
            return None
    return line if values else None


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= 100 and name.isascii() and name.replace("_", "").replace("/", "").replace(".", "").isalnum()


def _quick_event(given: Sequence[str]) -> dict[str, Any] | None:
    text, *options = given or [""]
    if not text or text.startswith("-") or len(text) >= 1 << 16:
        return None
    if not options:
        return {"event": text}
    return {"event": text, "level": options[1]} if options[0] == "--level" and options[1:] in _LEVELS else None


def _moment_of(line: Mapping[str, Any], inbox: str) -> dict[str, Any]:
    now = moment(inbox)
    return now if "metrics" in line else {"timestamp": now["timestamp"]}
