"""Events: messages with a time and a level, in order of time, then of arrival."""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from . import filters
from .errors import Invalid
from .listing import Page
from .times import to_text

_MAX_BINS = 10_000


def append(db: sqlite3.Connection, run: str, writer: str, rows: Iterable[tuple[int, int, int, str | None, str]]) -> None:
    """Store events of one writer: (sequence, wall ns, time µs, level, message)."""
    db.executemany(
        "INSERT INTO events (run, writer, seq, wall, at, level, message) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(run, writer, *row) for row in rows],
    )


def list_page(db: sqlite3.Connection, run: str, page: Page) -> tuple[list[dict[str, Any]], int]:
    """Return a page of a run's events and how many match. The caller has checked the run. Raises Invalid for a bad filter."""
    condition = filters.compile_event_filters(page.filters)
    where, values = f"t.run = :run AND {condition.sql}", {**condition.values, "run": run}
    total = db.execute(f"SELECT count(*) FROM events t WHERE {where}", values).fetchone()[0]
    limit = page.count or -1
    rows = db.execute(
        f"SELECT t.* FROM events t WHERE {where} ORDER BY t.at, t.id LIMIT :limit OFFSET :start",
        {**values, "limit": limit, "start": page.start},
    )
    out = [{"message": row["message"], "timestamp": to_text(row["at"]), "log_level": row["level"]} for row in rows]
    return out, int(total)


def histogram(
    db: sqlite3.Connection, run: str, begin: int, end: int, window: float, filter_strings: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the number of events in each window of `window` seconds from `begin` to `end` (µs).

    Raises Invalid for an empty range or more than 10,000 windows.
    """
    width = round(window * 1_000_000) if 0 < window < 1e12 else 0
    if width <= 0 or end <= begin or (end - begin) // width >= _MAX_BINS:
        raise Invalid(f"histogram: timestamp_end must be after timestamp_begin, with 1 to {_MAX_BINS} windows between them")
    condition = filters.compile_event_filters(list(filter_strings))
    found = dict(
        db.execute(
            f"SELECT (t.at - :begin) / :width, count(*) FROM events t WHERE t.run = :run AND t.at >= :begin AND t.at < :end"
            f" AND {condition.sql} GROUP BY 1",
            {**condition.values, "run": run, "begin": begin, "end": end, "width": width},
        ).fetchall()
    )
    bins = -(-(end - begin) // width)
    return [
        {
            "timestamp_begin": to_text(begin + i * width),
            "timestamp_end": to_text(min(begin + (i + 1) * width, end)),
            "count": found.get(i, 0),
        }
        for i in range(bins)
    ]


def summary(db: sqlite3.Connection, run: str) -> dict[str, dict[str, Any]]:
    """Return how many events a run has, by level, with the first and last time."""
    return {
        row["level"] or "none": {"count": row["n"], "first": to_text(row["a"]), "last": to_text(row["z"])}
        for row in db.execute(
            "SELECT level, count(*) AS n, min(at) AS a, max(at) AS z FROM events WHERE run = ? GROUP BY level", (run,)
        )
    }
