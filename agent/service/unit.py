"""The unit file: the template that is shipped in `simspool.systemd`, filled in for one interpreter and command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import resources

NAME = "simspool-agent.service"


def render(arguments: Sequence[str] = (), python: str | None = None) -> str:
    """Return the unit that starts `agent run` with these arguments, by this (or another) interpreter's absolute path.

    Raises ValueError for what a unit file cannot hold: control characters.
    """
    template = resources.files("simspool.systemd").joinpath(NAME).read_text(encoding="utf-8")
    program = quote(os.path.abspath(python or sys.executable))
    return template.replace("@PYTHON@", program).replace("@ARGUMENTS@", "".join(" " + quote(a) for a in arguments))


def quote(word: str) -> str:
    """Return one word of a unit's command line, so that systemd gives exactly this text to the program."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in word):
        raise ValueError(f"{word!r} has control characters or bytes that are not UTF-8: a unit file cannot hold it")
    escaped = word.replace("%", "%%").replace("$", "$$")
    if word and not any(c in word for c in " '\"\\;"):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'
