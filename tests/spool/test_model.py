"""A writer against a list: Hypothesis chooses records, rotations, upkeep, drops, live reading, kills and closes."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from simspool.spool import Drop, Durability, Kind, Writer, ids, segment
from simspool.spool.frames import Record
from simspool.spool.reader import Tail, read_drop_counts

RUN = bytes(range(16))
values = st.dictionaries(
    st.sampled_from(["a", "b", "c", "é"]),
    st.one_of(st.floats(allow_nan=False), st.integers(-(1 << 70), 1 << 70), st.booleans()),
    min_size=1,
    max_size=4,
)


class WriterModel(RuleBasedStateMachine):
    """The list has what returned True; the tail follows the writer while it lives, and salvages it when it was killed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.limit, segment.SEGMENT_MAX = segment.SEGMENT_MAX, 4096
        self.expected: list[Any] = []
        self.read: list[Any] = []
        self.drops = 0
        self.over = False

    @initialize(mapped=st.booleans(), durability=st.sampled_from(Durability))
    def begin(self, mapped: bool, durability: Durability) -> None:
        self.writer = Writer(self.folder, RUN, mapped=mapped, durability=durability)
        self.tail = Tail(self.writer.folder, ids.to_text(RUN))

    @precondition(lambda self: not self.over)
    @rule(given=values, timed=st.booleans(), kind=st.sampled_from([Kind.METRICS, Kind.RESOURCES]), times=st.integers(1, 30))
    def metrics(self, given: dict[str, Any], timed: bool, kind: Kind, times: int) -> None:
        for _ in range(times):
            assert self.writer.metrics(given, time=2.5 if timed else None, kind=kind)
            self.expected.append(given)

    @precondition(lambda self: not self.over)
    @rule(size=st.sampled_from([0, 10, 500, 5000, 100_000]))
    def event(self, size: int) -> None:
        assert self.writer.record(Kind.EVENT, {"message": "x" * size})
        self.expected.append("x" * size)

    @precondition(lambda self: not self.over)
    @rule()
    def drop(self) -> None:
        assert not self.writer.count_drop(Drop.INVALID)
        self.drops += 1

    @precondition(lambda self: not self.over)
    @rule(times=st.integers(1, 3))
    def maintain(self, times: int) -> None:
        for _ in range(times):
            self.writer.maintain()

    @precondition(lambda self: not self.over)
    @rule()
    def sync(self) -> None:
        assert self.writer.sync()

    @precondition(lambda self: not self.over)
    @rule()
    def rotate(self) -> None:
        self.writer._alone(self.writer._stream, self.writer._stream._make_room, 1)
        self.writer._alone(self.writer._stream, self.writer._stream.open_next)

    @rule(limit=st.sampled_from([1, 3000, 1 << 40]), anew=st.booleans())
    def follow(self, limit: int, anew: bool) -> None:
        if anew:
            t = self.tail
            t.close()
            self.tail = Tail(t.folder, ids.to_text(RUN), segment=t.segment, offset=t.offset, sequence=t.sequence)
        self.take(limit, dead=self.over)

    @precondition(lambda self: not self.over)
    @rule()
    def close(self) -> None:
        assert self.writer.close()
        self.over = True

    @precondition(lambda self: not self.over)
    @rule()
    def kill(self) -> None:
        """As a SIGKILL leaves it: nothing is sealed any more."""
        self.over = True

    def take(self, limit: int, *, dead: bool) -> None:
        for chunk in self.tail.read(dead=dead, limit=limit):
            assert not chunk.gaps
            assert not chunk.damage
            assert chunk.first == len(self.read) + 1
            for item in chunk.items:
                if isinstance(item, Record):
                    assert item.body is not None
                    self.read.append(item.body["message"] if "message" in item.body else item.body["values"])
                else:
                    self.read += [item.values(row) for row in item.rows]
            assert chunk.last == len(self.read)

    @invariant()
    def what_was_read_is_a_prefix(self) -> None:
        assert self.read == self.expected[: len(self.read)]

    def teardown(self) -> None:
        segment.SEGMENT_MAX = self.limit
        if hasattr(self, "tail"):
            self.take(1 << 40, dead=True)
            assert self.tail.complete
            self.tail.close()
            assert self.read == self.expected
            if self.expected:
                assert sum(read_drop_counts(self.tail.folder).values()) in {self.drops, 0 if self.writer.sequence == 0 else self.drops}
            self.writer.close()
        shutil.rmtree(self.folder)


TestWriterModel = WriterModel.TestCase
TestWriterModel.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
