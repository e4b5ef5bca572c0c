"""The filters and the sorting of lists, by the grammar of the dialect."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from models import FORMAT, Refused

_TERM = re.compile(r"^(?P<field>.+?) (?P<op>==|!=|>=|<=|>|<|not contains|contains) (?P<value>.*)$", re.DOTALL)
_EXISTS = re.compile(r"^(?P<field>.+?) (?P<no>not )?exists$")
_TAG = re.compile(r"^has (?P<no>not )?tag\.(?P<tag>.+)$")
_AGE = re.compile(r"^(\d+)([hdy])$")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_TIMES = ("created", "started", "endtime", "ended", "modified")
ME = "standin"  # the one user there is
_ABSENT = object()


def _read(doc: dict[str, Any], field: str) -> Any:
    """Return a field of a document by its dotted name; a key that has dots itself wins."""
    if field in {"folder.path", "folder"}:
        return doc.get("folder", _ABSENT)
    if field == "ended":
        field = "endtime"
    value: Any = doc
    rest = field
    while True:
        if not isinstance(value, dict):
            return _ABSENT
        if rest in value:
            return value[rest]
        head, dot, rest = rest.partition(".")
        if not dot or head not in value:
            return _ABSENT
        value = value[head]


def _compare(found: Any, op: str, wanted: str) -> bool:
    if op in {"contains", "not contains"}:
        return (wanted in str(found)) == (op == "contains")
    left: Any = found
    right: Any = wanted
    if isinstance(found, bool):
        left, right = str(found).lower(), wanted.lower()
    elif isinstance(found, (int, float)):
        try:
            right = float(wanted)
        except ValueError:
            return op == "!="
    else:
        left = str(found)
    return _OPERATORS[op](left, right)


def _one(doc: dict[str, Any], text: str) -> bool:
    if text == "starred":
        return bool(doc.get("starred"))
    if match := _TAG.match(text):
        return (match["tag"] in doc.get("tags", [])) != bool(match["no"])
    if match := _EXISTS.match(text):
        return (_read(doc, match["field"]) is not _ABSENT) != bool(match["no"])
    match = _TERM.match(text)
    if match is None:
        raise Refused(422, f"cannot read the filter {text!r}")
    field, op, wanted = match["field"], match["op"], match["value"]
    if field == "user" and wanted == "self":
        wanted = ME
    if field.startswith(("alert.", "artifact.")):
        kind, _, inner = field.partition(".")
        return any(_compare(each.get(inner), op, wanted) for each in doc.get(f"_{kind}s", []))
    found = _read(doc, field)
    if field in _TIMES and (age := _AGE.match(wanted)):
        if found is _ABSENT or found is None:
            return False
        unit = {"h": timedelta(hours=1), "d": timedelta(days=1), "y": timedelta(days=365)}[age[2]]
        passed = datetime.now(UTC).replace(tzinfo=None) - datetime.strptime(found, FORMAT)
        return passed < int(age[1]) * unit if op in {"<", "<="} else passed > int(age[1]) * unit
    if found is _ABSENT and "." not in field:
        raise Refused(422, f"no field {field!r} to filter by")
    if found is _ABSENT or found is None:
        return op in {"!=", "not contains"}
    return _compare(found, op, wanted)


def texts(raw: str | None) -> list[str]:
    """Return the filters of a query. Raises Refused(422) when it is no JSON list of strings."""
    if not raw:
        return []
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(f, str) for f in found):
        raise Refused(422, "filters must be a JSON list of strings")
    return found


def chosen(docs: list[dict[str, Any]], raw: str | None) -> list[dict[str, Any]]:
    """Return the documents that pass all filters."""
    filters = texts(raw)
    return [doc for doc in docs if all(_one(doc, text) for text in filters)]


def ordered(docs: list[dict[str, Any]], raw: str | None) -> list[dict[str, Any]]:
    """Return the documents by the columns of `sorting`, the first column first."""
    try:
        columns = [(str(c["id"]), bool(c.get("desc", True))) for c in json.loads(raw)] if raw else []
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refused(422, 'sorting must be a JSON list of {"id": column, "desc": bool}') from None
    for column, descending in reversed(columns):

        def key(doc: dict[str, Any], column: str = column) -> tuple[bool, bool, Any]:
            value = _read(doc, column)
            return (value is _ABSENT or value is None, isinstance(value, str), "" if value is _ABSENT or value is None else value)

        docs = sorted(docs, key=key, reverse=descending)
    return docs
