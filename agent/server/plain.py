"""Text and JSON that SQLite can hold and search: no lone surrogates, no bare NaN."""

from __future__ import annotations

import json
import math
from typing import Any


def text(value: object) -> str:
    """Return text with lone surrogates written out as escapes."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def dumps(value: Any) -> str:
    """Return JSON for a column that queries look into; non-finite numbers become text there (the run's state keeps them exact)."""
    return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
