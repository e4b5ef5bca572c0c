"""Questions that may never be answered, asked aside: a hung mount, a driver that waits for a dead card, a batch system that does not reply.

Each runs in a thread of its own; the asker waits only so long. While one has no answer, it is not asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class _Asked(threading.Thread):
    def __init__(self, question: Callable[[], Any]) -> None:
        super().__init__(name="simspool-aside", daemon=True)  # a hung one must not keep the agent from ending
        self._question = question
        self.answer: Any = None
        self.problem = ""

    def run(self) -> None:
        try:
            self.answer = self._question()
        except Exception as error:  # noqa: BLE001 - told to the asker
            self.problem = str(error) or type(error).__name__


class Unanswered(Exception):
    """Raised for a question that failed, or has no answer yet."""


class Aside:
    """Asks questions by key. For one thread."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Asked] = {}

    def ask(self, key: Hashable, question: Callable[[], T], patience: float) -> T:
        """Return the answer. `patience` is seconds; an answer that comes later is given at the next call. Raises Unanswered."""
        asked = self._open.get(key)
        if asked is None:
            asked = self._open[key] = _Asked(question)
            try:
                asked.start()
            except RuntimeError as error:  # no more threads
                del self._open[key]
                raise Unanswered(str(error)) from None
        asked.join(patience)
        if asked.is_alive():
            raise Unanswered("no answer")
        del self._open[key]
        if asked.problem:
            raise Unanswered(asked.problem)
        answer: T = asked.answer
        return answer
