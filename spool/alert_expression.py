"""The `when` of a composed alert: an expression of other alerts (docs/alerts.md, "Composed alerts").

    'stalled and (hot or "disk is full") and not 3 of warm-up'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InvalidRecord

ALL = 0  # as a count: all sources
_WORDS = frozenset({"and", "or", "not", "any", "all", "of"})
_DEEPEST = 100
_MOST = 1_000_000_000  # of a count
_TOKEN = re.compile(r"\s*(?:(?P<mark>[()])|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<word>[^\s()'\"]+)|(?P<rest>\S))")

Truth = Callable[[str, int], bool]
"""Says of an alert's name and a count whether so many of its sources are firing; ALL: all of them."""
Node = Callable[[Truth], bool]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. `holds` says whether it is true, given what is true of each operand; `operands` are (name, count)."""

    text: str
    operands: frozenset[tuple[str, int]]
    holds: Node

    @property
    def names(self) -> frozenset[str]:
        """The names of the alerts that it is about."""
        return frozenset(name for name, _ in self.operands)


def parse(text: str) -> Expression:
    """Return a parsed expression, in time linear in its length. Raises InvalidRecord, which says where and what was expected."""
    parser = _Parser(text)
    found = parser.either(0)
    if parser.kind:
        parser.fail("`and`, `or` or the end")
    return Expression(text, frozenset(parser.operands), found)


class _Parser:
    """One token ahead: `kind` is mark, word, name (in quotes), or empty at the end."""

    def __init__(self, text: str) -> None:
        self._text, self._next, self._at = text, 0, 0
        self.kind = self.token = ""
        self.operands: set[tuple[str, int]] = set()
        self._advance()

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._next)
        if found is None:
            self.kind, self.token, self._at = "", "", len(self._text)
            return
        group = str(found.lastgroup)
        self._at, self._next = found.start(group), found.end()
        self.kind, self.token = ("name" if group in {"single", "double"} else group), found[group]
        if group == "rest":
            raise InvalidRecord(f"when: the quote at position {self._at + 1} is not closed: {self._near()}")

    def _near(self) -> str:
        return repr(self._text[max(0, self._at - 20) : self._at + 20])

    def fail(self, expected: str) -> None:
        """Raise the error that something else was expected here."""
        found = repr(self.token[:100]) if self.kind else "the end"
        raise InvalidRecord(f"when: {expected} expected at position {self._at + 1}, not {found}, near {self._near()}")

    def _takes(self, kind: str, token: str) -> bool:
        if self.kind != kind or self.token != token:
            return False
        self._advance()
        return True

    def either(self, depth: int) -> Node:
        """X or Y or ..."""
        found = [self._both(depth)]
        while self._takes("word", "or"):
            found.append(self._both(depth))
        return found[0] if len(found) == 1 else lambda truth: any(node(truth) for node in found)

    def _both(self, depth: int) -> Node:
        found = [self._one(depth)]
        while self._takes("word", "and"):
            found.append(self._one(depth))
        return found[0] if len(found) == 1 else lambda truth: all(node(truth) for node in found)

    def _one(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise InvalidRecord(f"when: nested more than {_DEEPEST} deep at position {self._at + 1}")
        if self._takes("word", "not"):
            inner = self._one(depth + 1)
            return lambda truth: not inner(truth)
        if self._takes("mark", "("):
            inner = self.either(depth + 1)
            if not self._takes("mark", ")"):
                self.fail("`)`")
            return inner
        return self._operand()

    def _operand(self) -> Node:
        count = 1
        if self._takes("word", "all"):
            count = ALL
        elif self.kind == "word" and self.token.isdecimal() and self.token.isascii():
            digits = self.token
            if not 0 < len(digits) <= len(str(_MOST)) or not 1 <= int(digits) <= _MOST:
                self.fail(f"a count of 1 to {_MOST}")
            count = int(digits)
            self._advance()
            if not self._takes("word", "of"):
                self.fail("`of` (a name of digits only is put into quotes)")
        else:
            self._takes("word", "any")
        name = self.token
        if self.kind not in {"word", "name"} or not name or (self.kind == "word" and (name in _WORDS or name.isdecimal())):
            self.fail("the name of an alert (one of the words and, or, not, any, all, of is put into quotes)")
        self._advance()
        self.operands.add((name, count))
        return lambda truth: truth(name, count)
