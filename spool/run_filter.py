"""Which runs an alert is for, or about: `folder=/a tag=x name="orbit *" metadata.kind=test` (docs/alerts.md, "Rules of a site")."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from .errors import InvalidRecord

_TERMS = "folder=PATH, tag=TAG, name=GLOB or metadata.KEY=VALUE"


@dataclass(frozen=True, slots=True)
class RunFilter:
    """A parsed filter: all of it must hold; an empty one means all runs."""

    folder: str | None = None
    tags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()


def parse(text: str) -> RunFilter:
    """Return the filter in a text. Raises InvalidRecord, which names the term."""
    folder: str | None = None
    tags: list[str] = []
    names: list[str] = []
    metadata: list[tuple[str, str]] = []
    try:
        terms = shlex.split(text)
    except ValueError as error:
        raise InvalidRecord(f"{text!r} is no filter ({error}): use {_TERMS}"[:400]) from None
    for term in terms:
        key, sign, value = term.partition("=")
        if not sign or not value:
            raise InvalidRecord(f"{term!r} is no term of a filter: use {_TERMS}"[:400])
        if key == "folder":
            if folder is not None:
                raise InvalidRecord("a run is in one folder: give folder= once")
            if not value.startswith("/"):
                raise InvalidRecord(f"a folder begins with /, not {value!r}"[:300])
            folder = value
        elif key == "tag":
            tags.append(value)
        elif key == "name":
            names.append(value)
        elif key.startswith("metadata.") and len(key) > len("metadata."):
            metadata.append((key.removeprefix("metadata."), value))
        else:
            raise InvalidRecord(f"there is no {key!r} to filter by: use {_TERMS}"[:300])
    return RunFilter(folder, tuple(tags), tuple(names), tuple(metadata))
