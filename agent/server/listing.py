"""A page of a list: start, count, filters, sorting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import Invalid

MAX_PAGE = 1000
_MAX_SORTS = 10


@dataclass(frozen=True, slots=True)
class Page:
    """What a list request asks for. `count` None means all, up to MAX_PAGE."""

    start: int = 0
    count: int | None = None
    filters: Sequence[str] = ()
    sorting: Sequence[tuple[str, bool]] = field(default_factory=tuple)

    @property
    def limit(self) -> int:
        """The largest number of rows of the answer."""
        return min(self.count or MAX_PAGE, MAX_PAGE)


def parse_sorting(text: str | None) -> list[tuple[str, bool]]:
    """Return (column, descending) pairs of the query's `sorting`. Raises Invalid."""
    if not text:
        return []
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid('sorting: a JSON list of {"id": column, "desc": bool} is expected') from None
    if not isinstance(listed, list) or len(listed) > _MAX_SORTS:
        raise Invalid(f"sorting: a list of at most {_MAX_SORTS} columns is expected")
    out = []
    for entry in listed:
        column = entry.get("id", entry.get("column")) if isinstance(entry, dict) else None
        if not isinstance(column, str):
            raise Invalid('sorting: each entry is {"id": column, "desc": bool}')
        out.append((column, bool(entry.get("desc", entry.get("descending", False)))))
    return out
