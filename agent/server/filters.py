"""The dialect's filter strings as SQL conditions with bound parameters; nothing that a user sends becomes SQL text.

`name == x`, `name contains x`, `name not contains x`, `user == self`, `has tag.x`, `has not tag.x`, `folder.path == /a`,
`metadata.k exists`, `metadata.k not exists`, `metadata.k >= v`, `system.cpu.arch == x`, `alert.name == x`, `alert.status == critical`,
`created < 3h` (younger than), `artifact.id == x`, `starred`, `event.message contains x`. All must hold.
"""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import Invalid
from .identity import Principal
from .times import age_us, from_text, now_us

_MAX_FILTERS, _MAX_FILTER = 100, 4096
_FORM = re.compile(r"^\s*(\S+?)\s*(==|!=|>=|<=|>|<|not\s+contains\b|contains\b|not\s+exists\b|exists\b)\s?(.*)$", re.DOTALL)
_FORM_SPACED = re.compile(
    r"^\s*((?:metadata|system)\..+?)\s+(==|!=|>=|<=|>|<|not\s+contains|contains|not\s+exists|exists)(?:\s(.*))?$", re.DOTALL
)
_COMPARE = {"==": "=", "!=": "<>", ">": ">", "<": "<", ">=": ">=", "<=": "<="}
_TIMES = {"created": "created", "started": "started", "endtime": "ended", "ended": "ended", "modified": "modified"}
_TEXTS = {
    "runs": {"name": "name", "description": "description", "status": "status", "folder.path": "folder", "folder": "folder", "id": "id"},
    "documents": {"name": "name", "path": "name", "description": "json_extract({t}.body, '$.description')", "id": "id"},
}


@dataclass(slots=True)
class Condition:
    """An SQL condition over one table's alias `t`, and its parameters."""

    clauses: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: Any) -> str:
        """Return the placeholder of a new parameter."""
        name = f"f{len(self.values)}"
        self.values[name] = value
        return f":{name}"

    @property
    def sql(self) -> str:
        """The condition; `1` when there is none."""
        return " AND ".join(self.clauses) or "1"


def parse(raw: Sequence[str]) -> list[str]:
    """Return the filter strings of the query's `filters` values: each a JSON list of strings, or one bare string. Raises Invalid."""
    out: list[str] = []
    for text in raw:
        if not text.strip():
            continue
        if text.lstrip().startswith("["):
            try:
                listed = json.loads(text)
            except (ValueError, RecursionError):
                raise Invalid("filters: not a JSON list of strings") from None
            if not isinstance(listed, list) or not all(isinstance(f, str) for f in listed):
                raise Invalid("filters: a JSON list of strings is expected")
            out += listed
        else:
            out.append(text)
    if len(out) > _MAX_FILTERS or any(len(f) > _MAX_FILTER for f in out):
        raise Invalid(f"filters: at most {_MAX_FILTERS} of at most {_MAX_FILTER} characters")
    return out


def compile_filters(filters: Sequence[str], who: Principal, table: str) -> Condition:
    """Return the condition of some filters over `runs` or `documents` (alias `t`). Raises Invalid for what is not a filter."""
    out = Condition()
    alerts: list[tuple[str, str, str]] = []
    for text in filters:
        stripped = text.strip()
        if stripped == "starred":
            kind = "'run'" if table == "runs" else "t.kind"
            me = out.bind(who.user)
            out.clauses.append(f"EXISTS (SELECT 1 FROM stars s WHERE s.user = {me} AND s.kind = {kind} AND s.id = t.id)")
            continue
        if (tag := _tag(stripped)) is not None:
            exists = "EXISTS" if tag[0] else "NOT EXISTS"
            source = "t.tags" if table == "runs" else "json_extract(t.body, '$.tags')"
            out.clauses.append(f"{exists} (SELECT 1 FROM json_each({source}) WHERE value = {out.bind(tag[1])})")
            continue
        found = _FORM_SPACED.match(text) or _FORM.match(text)
        if not found:
            raise Invalid(f"not a filter: {text[:80]!r} (such as `name == x`, `has tag.x`, `metadata.k >= 3`, `created < 3h`)")
        column, operator, value = found[1], " ".join(found[2].split()), (found[3] or "").strip()
        if column.startswith("alert.") and table == "runs":
            alerts.append((column[6:], operator, value))
        else:
            out.clauses.append(_clause(out, who, table, column, operator, value))
    if alerts:
        out.clauses.append(_alerts(out, alerts))
    return out


def _tag(text: str) -> tuple[bool, str] | None:
    for prefix, wanted in (("has not tag.", False), ("has tag.", True)):
        if text.startswith(prefix):
            return wanted, text[len(prefix) :]
    return None


def _clause(out: Condition, who: Principal, table: str, column: str, operator: str, value: str) -> str:
    if column in _TIMES and (table == "runs" or column in {"created", "modified"}):
        return _time(out, f"t.{_TIMES[column]}", operator, value)
    if column == "user":
        return f"t.owner {_equality(operator, column)} {out.bind(who.user if value == 'self' else value)}"
    if column == "artifact.id" and table == "runs":
        inside = "IN" if _equality(operator, column) == "=" else "NOT IN"
        return f"t.id {inside} (SELECT run FROM run_artifacts WHERE artifact = {out.bind(value)})"
    for root in ("metadata", "system"):
        if column.startswith(root + ".") and (table == "runs" or root == "metadata"):
            source = f"t.{root}" if table == "runs" else "json_extract(t.body, '$.metadata')"
            return _json(out, source, column[len(root) + 1 :], operator, value)
    expression = _TEXTS[table].get(column)
    if expression is None:
        raise Invalid(f"filters: {column[:80]!r} cannot be filtered")
    expression = expression.format(t="t") if "{t}" in expression else f"t.{expression}"
    return _text(out, expression, operator, value, column)


def _equality(operator: str, column: str) -> str:
    if operator not in {"==", "!="}:
        raise Invalid(f"filters: {column[:80]!r} takes == or !=, not {operator!r}")
    return _COMPARE[operator]


def _text(out: Condition, expression: str, operator: str, value: str, column: str) -> str:
    if operator in {"contains", "not contains"}:
        negation = "NOT " if operator.startswith("not") else ""
        return f"{negation}instr(lower(coalesce({expression}, '')), lower({out.bind(value)}))"
    if operator in {"exists", "not exists"}:
        return f"{expression} IS {'NOT ' if operator == 'exists' else ''}NULL"
    return f"coalesce({expression}, '') {_equality(operator, column)} {out.bind(value)}"


def _time(out: Condition, expression: str, operator: str, value: str) -> str:
    if operator not in {">", "<", ">=", "<="}:
        raise Invalid(f"filters: a time takes <, <=, > or >= and an age such as 3h, not {operator!r}")
    try:
        age = age_us(value)
    except Invalid:
        return f"{expression} {operator} {out.bind(from_text(value, 'filters'))}"
    # `created < 3h` reads "less than three hours ago": a larger moment
    flipped = {">": "<", "<": ">", ">=": "<=", "<=": ">="}[operator]
    return f"{expression} {flipped} {out.bind(now_us() - age)}"


def json_path(keys: Sequence[str]) -> str:
    """Return SQLite's path to nested keys. Raises Invalid for a key that it cannot name."""
    if any('"' in key or not key for key in keys):
        raise Invalid("a metadata key with a quote, or an empty one, cannot be filtered or sorted by")
    return "$" + "".join(f'."{key}"' for key in keys)


def _json(out: Condition, source: str, key: str, operator: str, value: str) -> str:
    flat = out.bind(json_path([key]))
    nested = out.bind(json_path(key.split(".")))
    kind = f"coalesce(json_type({source}, {flat}), json_type({source}, {nested}))"
    found = f"coalesce(json_extract({source}, {flat}), json_extract({source}, {nested}))"
    if operator in {"exists", "not exists"}:
        return f"{kind} IS {'NOT ' if operator == 'exists' else ''}NULL"
    if operator in {"contains", "not contains"}:
        return _text(out, f"CAST({found} AS TEXT)", operator, value, key)
    try:
        number: float | None = int(value) if len(value) < 18 else float(value)
    except ValueError:
        try:
            number = float(value)
        except ValueError:
            number = None
    if operator in {"==", "!="}:
        text = f"coalesce(CAST({found} AS TEXT) = {out.bind(value)}, 0)"
        if number is not None:
            text = f"({text} OR ({kind} IN ('integer', 'real') AND {found} = {out.bind(number)}))"
        elif value.lower() in {"true", "false"}:
            text = f"({text} OR coalesce({kind} = {out.bind(value.lower())}, 0))"
        return text if operator == "==" else f"NOT coalesce(({text}), 0)"
    if number is None:
        return f"({kind} = 'text' AND {found} {_COMPARE[operator]} {out.bind(value)})"
    return f"({kind} IN ('integer', 'real') AND {found} {_COMPARE[operator]} {out.bind(number)})"


def _alerts(out: Condition, alerts: Sequence[tuple[str, str, str]]) -> str:
    # name and status speak of the same alert
    parts = []
    for column, operator, value in alerts:
        expression = {"name": "d.name", "id": "d.id", "status": "ra.status"}.get(column)
        if expression is None:
            raise Invalid(f"filters: 'alert.{column[:40]}' cannot be filtered")
        parts.append(_text(out, expression, operator, value, f"alert.{column}"))
    return (
        "EXISTS (SELECT 1 FROM run_alerts ra JOIN documents d ON d.id = ra.alert WHERE ra.run = t.id AND " + " AND ".join(parts) + ")"
    )


def compile_event_filters(filters: Sequence[str]) -> Condition:
    """Return the condition of event filters over `events` (alias `t`). Raises Invalid."""
    out = Condition()
    columns = {"event.message": "t.message", "message": "t.message", "event.log_level": "t.level", "log_level": "t.level"}
    for text in filters:
        found = _FORM.match(text)
        if not found or found[1] not in columns:
            raise Invalid(f"not a filter for events: {text[:80]!r} (such as `event.message contains x`)")
        out.clauses.append(_text(out, columns[found[1]], " ".join(found[2].split()), (found[3] or "").strip(), found[1]))
    return out
