"""A reference curve in its one form: a text of lines `x,value`, in order of x (docs/alerts.md, "A reference curve")."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable
from itertools import pairwise

from .errors import InvalidRecord

MOST_POINTS = 1_000_000
AXES = ("step", "time")
MIME = "text/csv"


def encode(points: Iterable[tuple[float, float]]) -> bytes:
    """Return a curve's bytes. Of points with one x the last counts; those without a finite x are left out; more than MOST_POINTS are
    thinned out evenly, the ends stay. Raises InvalidRecord where nothing is left."""
    known = {x + 0.0: value for x, value in points if math.isfinite(x)}
    if not known:
        raise InvalidRecord("a reference curve needs at least one point with a finite x")
    xs = sorted(known)
    if len(xs) > MOST_POINTS:
        xs = [xs[round(i * (len(xs) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    return "".join(f"{x!r},{known[x]!r}\n" for x in xs).encode()


def decode(data: bytes) -> tuple[array[float], array[float]]:
    """Return the xs and the values in a curve's bytes. Raises ValueError when they are none."""
    xs, values = array("d"), array("d")
    for line in data.decode("ascii").splitlines():
        x, _, value = line.partition(",")
        xs.append(float(x))
        values.append(float(value))
    if not xs or not all(map(math.isfinite, xs)) or any(not a < b for a, b in pairwise(xs)):
        raise ValueError("a reference curve has lines x,value, in order of x")
    return xs, values


def digest_of(data: bytes) -> str:
    """Return a curve's SHA-256 in hex: what an alert names it by."""
    return hashlib.sha256(data).hexdigest()


def artifact_name(digest: str) -> str:
    """Return as what a curve of this digest is kept with the run."""
    return f"reference/{digest[:16]}.csv"
