"""Record kinds and the canonical JSON that carries all but the binary ones."""

from __future__ import annotations

import json
import math
from enum import IntEnum
from typing import Any

from .errors import InvalidRecord


class Kind(IntEnum):
    """What a frame holds; the codes of FORMAT.md section 5."""

    DEFINITION = 1
    SEAL = 2
    RUN = 8
    ATTACH = 9
    METRICS = 16
    METRICS_JSON = 17
    EVENT = 18
    ARTIFACT = 19
    RESOURCES = 20
    RESOURCES_JSON = 21
    METADATA = 24
    TAGS = 25
    STATUS = 26
    FOLDER = 27
    ALERT = 28
    ALERT_STATE = 29
    DECISION = 30
    PROCESS_START = 32
    PROCESS_EXIT = 33
    CONFIG = 34
    ABORT = 35
    INBOX = 36
    NOTIFICATION = 37
    CLOSE = 40
    SURVIVOR = 41
    INTENT = 48
    RECEIPT = 49
    IDMAP = 50
    PRUNE = 51
    SHED = 52
    CHECKPOINT = 53

    @property
    def label(self) -> str:
        """The name used in commands and JSON; binary and JSON metrics share one."""
        return _LABELS[self]


_LABELS = {k: k.name.lower().replace("_", "-").removesuffix("-json") for k in Kind}
BINARY_KINDS = frozenset({Kind.METRICS, Kind.RESOURCES})
UNSEQUENCED_KINDS = frozenset({Kind.DEFINITION, Kind.SEAL})


def label(kind: int) -> str:
    """Return the name of a kind's code; unknown codes give their number."""
    try:
        return _LABELS[Kind(kind)]
    except ValueError:
        return str(kind)


STATUSES = ("created", "running", "completed", "failed", "terminated", "lost")
FINAL_STATUSES = frozenset({"completed", "failed", "terminated", "lost"})


def _pack(value: Any) -> Any:
    """Replace what JSON cannot hold: non-finite numbers become tagged objects."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {"$float": "nan" if value != value else "inf" if value > 0 else "-inf"}
    if isinstance(value, dict):
        packed = {}
        for k, v in value.items():
            if not isinstance(k, str):
                raise InvalidRecord(f"keys must be text, not {type(k).__name__}: {k!r}")
            packed[k] = _pack(v)
        return {"$float": {"object": packed}} if len(packed) == 1 and "$float" in packed else packed
    if isinstance(value, (list, tuple)):
        return [_pack(v) for v in value]
    return value


_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _unpack(value: Any) -> Any:
    """Undo `_pack`, from the outside in: what is wrapped as an object is not looked at again."""
    if isinstance(value, dict):
        if len(value) == 1 and "$float" in value:
            tag = value["$float"]
            if isinstance(tag, str) and tag in _FLOATS:
                return _FLOATS[tag]
            if isinstance(tag, dict) and len(tag) == 1 and isinstance(tag.get("object"), dict):
                value = tag["object"]
        return {k: _unpack(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"bare {text} is not JSON")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
_ascii_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def encode(body: dict[str, Any]) -> bytes:
    """Return a record's body as canonical JSON.

    Raises InvalidRecord for values that JSON has no form for, for non-text keys and for nesting too deep to encode.
    """
    try:
        packed = _pack(body)
        try:
            return _encoder.encode(packed).encode()
        except UnicodeEncodeError:  # lone surrogates
            return _ascii_encoder.encode(packed).encode()
    except RecursionError:
        raise InvalidRecord("the value is nested too deeply, or contains itself") from None
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"cannot be recorded as JSON: {error}") from None


def decode(payload: bytes) -> dict[str, Any]:
    """Return the body of a JSON payload.

    Raises ValueError when the bytes are not a JSON object, or are nested too deeply.
    """
    try:
        body = _decoder.decode(payload.decode())
        if b'$float"' in payload:
            body = _unpack(body)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError(f"a record's body must be an object, not {type(body).__name__}")  # noqa: TRY004 - of the bytes, not the caller
    return body
