"""`deviates from reference`: points become their deviations from a curve, and are judged like any values (docs/alerts.md, "Conditions")."""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from simspool.spool import RunFolder, reference_curve

from .decisions import Timeline
from .rules import Rule
from .windows import WindowStream


class Curve:
    """What a metric should be, by step or time."""

    def __init__(self, data: bytes) -> None:
        """Read a curve's bytes. Raises ValueError when they are none."""
        self._xs, self._values = reference_curve.decode(data)

    def at(self, x: float) -> float | None:
        """Return the value at x, between two points interpolated; None outside, and where it is not finite."""
        xs, values = self._xs, self._values
        if not xs[0] <= x <= xs[-1]:
            return None
        right = bisect_left(xs, x)
        found = values[right]
        if xs[right] != x:
            x0, r0 = xs[right - 1], values[right - 1]
            found = r0 + (found - r0) * ((x - x0) / (xs[right] - x0))
        return found if math.isfinite(found) else None


Curves = Callable[[str], Curve]
"""Given a digest, returns the curve that is kept with the run. Raises LookupError, with why, where it cannot be had."""


_loaded: weakref.WeakValueDictionary[str, Curve] = weakref.WeakValueDictionary()  # many runs may follow one curve


def curves_of(run: RunFolder) -> Curves:
    """Return what gets the curves that are kept with a run; their bytes are verified."""

    def get(digest: str) -> Curve:
        try:
            with open(os.path.join(run.blobs, os.path.basename(digest)), "rb") as f:
                known = _loaded.get(digest)
                if known is not None:
                    return known
                data = f.read()
        except OSError as error:
            raise LookupError(f"{reference_curve.artifact_name(digest)} is not with the run ({error.strerror})") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise LookupError(f"{reference_curve.artifact_name(digest)} is damaged: its bytes do not have its digest")
        try:
            found = _loaded[digest] = Curve(data)
        except ValueError as error:
            raise LookupError(f"{reference_curve.artifact_name(digest)} is no curve: {error}") from None
        return found

    return get


class ReferenceStream(WindowStream):
    """The deviations of one metric; `deviation` makes them."""

    def __init__(self, rule: Rule, key: Mapping[str, str], line: Timeline, since: float, after: int, curve: Curve) -> None:
        super().__init__(rule, key, line, since, after)
        self._curve = curve
        self._seen = (0.0, 0.0, 0.0)  # x, value and reference of the point that arrived last

    def deviation(self, x: float, value: float) -> float | None:
        """Return how much further than allowed a point lies from the curve (negative: within); None for one that is left out."""
        reference = self._curve.at(x)
        if reference is None:
            return None
        self._seen = x, value, reference
        if not math.isfinite(value):
            return math.inf
        return abs(value - reference) - (self.rule.tolerance + self.rule.relative_tolerance * abs(reference))

    def _why_now(self) -> tuple[str, dict[str, Any]]:
        _, inputs = super()._why_now()
        x, value, reference = self._seen
        axis = "time" if self.rule.by_time else "step"
        inputs |= {axis: x, "measured": value, "reference": reference}
        word = "follows the reference again" if self.firing else "deviates from the reference"
        said = f"{self.key['metric']} {word}: {value:g} at {axis} {x:g}, where that has {reference:g} (allowed is {self.rule.allowed()})"
        return said, inputs
