"""What the tests of the format share: writers with fixed clocks, and reading everything back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from simspool.spool import Durability, Writer, ids, stream
from simspool.spool.frames import MetricBatch, Record
from simspool.spool.reader import Damage, Tail

RUN = bytes(range(16))


@dataclass
class Reading:
    """Everything that a tail gave."""

    records: list[tuple[Any, ...]] = field(default_factory=list)  # (sequence, kind, step or body, values)
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    complete: bool = False

    @property
    def sequences(self) -> list[int]:
        return [r[0] for r in self.records]

    @property
    def missing(self) -> set[int]:
        return {n for first, last, _ in self.gaps for n in range(first, last + 1)}


def flatten(items: list[MetricBatch | Record]) -> Iterator[tuple[Any, ...]]:
    for item in items:
        if isinstance(item, Record):
            yield item.seq, item.kind, item.body, None
        else:
            for row in item.rows:
                yield row[1], item.kind, row[4], item.values(row)


def read_all(folder: str, *, dead: bool = True, tail: Tail | None = None) -> Reading:
    out = Reading()
    tail = tail or Tail(folder, ids.to_text(RUN))
    for chunk in tail.read(dead=dead):
        out.records += flatten(chunk.items)
        out.gaps += chunk.gaps
        out.damage += chunk.damage
    tail.close()
    out.complete = tail.complete
    return out


@pytest.fixture
def read() -> Callable[..., Reading]:
    return read_all


@pytest.fixture(params=["mapped", "file"])
def mapped(request: pytest.FixtureRequest) -> bool:
    return request.param == "mapped"


@pytest.fixture
def writer(tmp_path: Any, mapped: bool) -> Iterator[Writer]:
    made = Writer(str(tmp_path / "w"), RUN, mapped=mapped, durability=Durability.LAZY)
    yield made
    made.close()


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Restart the injected clocks and ids: what is recorded after each call has the same bytes."""

    def restart() -> None:
        numbers = itertools.count(1)
        monkeypatch.setattr(stream, "boot_ns", lambda: 1_000_000_000)
        monkeypatch.setattr(stream, "wall_ns", lambda: 1_700_000_000_000_000_000)
        monkeypatch.setattr("simspool.spool.writer._clock_ns", lambda _: 1_000_000_000)
        monkeypatch.setattr(ids, "new_id", lambda: (1_700_000_000_000).to_bytes(6, "big") + next(numbers).to_bytes(10, "big"))

    restart()
    return restart


def files(folder: str) -> dict[str, bytes]:
    out = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as f:
            out[name] = f.read()
    return out


@pytest.fixture
def content() -> Callable[[str], dict[str, bytes]]:
    return files
