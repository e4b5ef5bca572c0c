"""The expressions that users give: checked, compiled, and what one match of them says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import re2

from simspool.sdk import validation
from simspool.spool import InvalidRecord

from .numerals import number, whole_number

LONGEST_MESSAGE = 10_000  # bytes
_NAMED = re.compile(r"(?P<name>[\w\s/.:=><+()%{}-]*?)\s+:=\s+(?P<expression>.*)", re.DOTALL)
_PLACE = re.compile(r"\{(\w*)\}")
_INDEX = re.compile(r"\[([^\[\]]*)\]")
_REFUSED = re.compile(r"[^a-zA-Z0-9\-_\s/.:=><+()%]")
# Brackets, and what they mean nothing in.
_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\((?:\?P?<(?P<name>\w+)>|\?)?|\)")
_LEVELS = {"warn": "warning", "err": "error", "fatal": "critical", "severe": "critical", "notice": "info", "trace": "debug"}


class InvalidPattern(InvalidRecord):
    """Raised for an expression that cannot be used. `expression` is as it was given, `at` the place of the fault in it, where known."""

    def __init__(self, what: str, expression: str, why: str, at: int | None = None) -> None:
        self.expression, self.why, self.at = expression, why, at
        mark = "" if at is None else f"\n  {' ' * at}^"
        super().__init__(f"{what} is not valid: {why}\n  {expression}{mark}")


class Found(NamedTuple):
    """What one match of a metric expression says; `refused` are groups whose text is no number, each with its text."""

    values: dict[str, float | int]
    step: int | None
    time: float | None
    refused: tuple[tuple[str, bytes], ...]


def options(*, capture: bool = True) -> Any:
    """Return how expressions are read: UTF-8, a match lies within one line, `^` and `$` (with (?m)) are a line's begin and end."""
    chosen = re2.Options()
    chosen.never_nl, chosen.log_errors, chosen.never_capture = True, False, not capture
    return chosen


def compiled(what: str, expression: str, given: str | None = None) -> Any:
    """Return a compiled expression. `given` is the whole text in which it stands. Raises InvalidPattern."""
    given = expression if given is None else given
    try:
        ready = re2.compile(f"(?m){expression}".encode(), options())
    except UnicodeEncodeError:
        raise InvalidPattern(what, given.encode(errors="replace").decode(), "it is not UTF-8") from None
    except re2.error as error:
        raw = error.args[0] if error.args else b""
        why = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        raise InvalidPattern(what, given, *_explained(why, expression, len(given) - len(expression))) from None
    names = [part["name"] for part in _PARTS.finditer(expression) if part["name"]]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidPattern(what, given, f"two groups are named {twice!r}: give two expressions", given.rfind(f"<{twice}>"))
    if ready.search(b"") is not None:
        raise InvalidPattern(what, given, "it matches an empty line, and so every line: make a part of it required, or anchor it")
    return ready


def _explained(why: str, expression: str, offset: int) -> tuple[str, int | None]:
    reason, _, fragment = why.partition(": ")
    fragment = fragment.removeprefix("(?m)")
    at = expression.find(fragment) if fragment else -1
    if reason == "missing )":
        at = _open_bracket(expression)
    if reason in {"invalid perl operator", "invalid escape sequence"}:
        why += "; look-around and back-references are not available (RE2 syntax)"
    if fragment == expression:
        why = reason
    return why.replace("(?m)", ""), at + offset if at >= 0 else None


def _open_bracket(expression: str) -> int:
    """Return where the bracket is that nothing closes."""
    opened: list[int] = []
    for part in _PARTS.finditer(expression):
        if part[0].startswith("("):
            opened.append(part.start())
        elif part[0] == ")" and opened:
            opened.pop()
    return opened[-1] if opened else -1


def metric_name(text: str) -> str:
    """Return a metric's name made of a column's title or a word of the text: what is not allowed in it becomes "_", c_1[2] c_1(2)."""
    return _REFUSED.sub("_", _INDEX.sub(r"(\1)", " ".join(text.split())))[: validation.MAX_NAME] or "_"


@dataclass(slots=True)
class MetricExpression:
    """`REGEX` with named groups, or `NAME := REGEX` with one unnamed group and {group} in the name."""

    source: str
    expression: str
    ready: Any
    groups: tuple[tuple[int, str], ...]  # the values: index of the group, metric's name
    parts: tuple[str | int, ...]  # of a composed name: texts and indexes of groups, for the one value of `groups`
    step: int
    time: int

    @classmethod
    def parse(cls, given: str) -> MetricExpression:
        """Read what a user gave. Raises InvalidPattern."""
        what = "the metric expression"
        named = _NAMED.match(given)
        expression = named["expression"] if named else given
        ready = compiled(what, expression, given)
        indexes: dict[str, int] = {name.decode(): index for name, index in ready.groupindex.items()}
        step, time = indexes.pop("step", 0), indexes.pop("time", 0)
        if named is None:
            if not indexes and not step and not time:
                hint = "write (?P<loss>...)"
                if ready.groups:
                    hint = f"name it, as in {_with_name(expression)}, or write 'loss := {expression}'"
                raise InvalidPattern(what, given, f"no group in it has a name, so there is nothing to record: {hint}")
            return cls(given, expression, ready, tuple((index, name) for name, index in indexes.items()), (), step, time)
        free = set(range(1, ready.groups + 1)) - set(indexes.values()) - {step, time}
        if len(free) != 1:
            raise InvalidPattern(
                what, given, f"behind ':=' one group without a name gives the value, there are {len(free)}: "
                "write (?:...) for groups that only bracket, and ':[=]' where the text itself has ' := '",
            )  # fmt: skip
        parts = _name_parts(named["name"].strip(), indexes, what, given)
        try:
            validation.check_metric_name("".join(part if isinstance(part, str) else "x" for part in parts))
        except InvalidRecord as error:
            raise InvalidPattern(what, given, str(error), 0) from None
        group = free.pop()
        if any(isinstance(part, int) for part in parts):
            return cls(given, expression, ready, ((group, ""),), parts, step, time)
        return cls(given, expression, ready, ((group, "".join(map(str, parts))),), (), step, time)

    def read(self, match: Any) -> Found:
        """Return what a match says."""
        values: dict[str, float | int] = {}
        refused: list[tuple[str, bytes]] = []
        step = time = None
        if self.step:
            text = match.group(self.step)
            if text is not None:
                step = whole_number(text)
                if step is None:
                    refused.append(("step", text))
        if self.time:
            text = match.group(self.time)
            if text is not None:
                time = number(text)
                if time is None:
                    refused.append(("time", text))
        for index, name in self.groups:
            text = match.group(index)
            if text is None:  # an alternative that was not taken
                continue
            value = number(text)
            full = self._composed(match) if self.parts else name
            if value is None:
                refused.append((full, text))
            else:
                values[full] = value
        return Found(values, step, None if time is None else float(time), tuple(refused))

    def _composed(self, match: Any) -> str:
        texts = [part if isinstance(part, str) else (match.group(part) or b"").decode(errors="replace") for part in self.parts]
        return metric_name("".join(texts))


@dataclass(slots=True)
class EventExpression:
    """An expression whose lines are events."""

    source: str
    expression: str
    ready: Any
    message: int
    level: int
    by_level: tuple[tuple[int, str], ...]

    @classmethod
    def parse(cls, given: str) -> EventExpression:
        """Read what a user gave. Raises InvalidPattern."""
        ready = compiled("the event expression", given)
        indexes: dict[str, int] = {name.decode(): index for name, index in ready.groupindex.items()}
        by_level = tuple((index, name) for name, index in indexes.items() if name in validation.LEVELS)
        return cls(given, given, ready, indexes.get("message", 0), indexes.get("level", 0), by_level)

    def read(self, match: Any, line: bytes) -> tuple[str, str]:
        """Return the event's message and level: of the groups of these names, of a group that is named as a level, or the line's."""
        level, message = "info", line
        for index, name in self.by_level:
            text = match.group(index)
            if text is not None:
                level, message = name, text
                break
        if self.level:
            word = (match.group(self.level) or b"").decode(errors="replace").lower()
            level = _LEVELS.get(word, word) if _LEVELS.get(word, word) in validation.LEVELS else level
        if self.message:
            message = match.group(self.message) or message
        return shown(message), level


def shown(message: bytes) -> str:
    """Return the text of an event: at most 10,000 bytes, the blanks around it gone."""
    if len(message) > LONGEST_MESSAGE:
        return message[:LONGEST_MESSAGE].decode(errors="replace").strip() + " ..."
    return message.decode(errors="replace").strip()


def _with_name(expression: str) -> str:
    """Return the expression with its first unnamed group named: what the user probably meant."""
    for part in _PARTS.finditer(expression):
        if part[0] == "(":
            return f"'{expression[: part.start()]}(?P<loss>{expression[part.end() :]}'"
    return "'(?P<loss>...)'"


def _name_parts(name: str, indexes: dict[str, int], what: str, given: str) -> tuple[str | int, ...]:
    """Cut a name into texts and groups. Raises InvalidPattern for a group that is not there, and for one that is not used."""
    parts: list[str | int] = []
    at, unused = 0, set(indexes)
    for place in _PLACE.finditer(name):
        if place[1] not in indexes:
            raise InvalidPattern(what, given, f"there is no group (?P<{place[1] or 'name'}>...) for {place[0]}", place.start())
        parts += [name[at : place.start()], indexes[place[1]]]
        unused.discard(place[1])
        at = place.end()
    if unused:
        raise InvalidPattern(
            what, given, f"the group {min(unused)!r} stands for nothing: write {{{min(unused)}}} in the name before ':=', or (?:...)"
        )
    parts.append(name[at:])
    return tuple(part for part in parts if part != "")
