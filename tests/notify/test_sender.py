"""A channel's thread: order, retries, digests, and what the records say of each try."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from notices import NOW, firing

from simspool.agent.drain.backoff import Backoff
from simspool.agent.notify.channels import NotDelivered
from simspool.agent.notify.message import Message, digest_id
from simspool.agent.notify.queue import Notice, Tried
from simspool.agent.notify.sender import Sender
from simspool.agent.notify.settings import Terminal


class Desk:
    """What a sender has around it: a way to deliver that a test decides on, and the records."""

    def __init__(self) -> None:
        self.delivered: list[Message] = []
        self.records: list[tuple[int, str, int, str | None]] = []
        self.abandoned: list[str] = []
        self.said: list[str] = []
        self.decide: Callable[[Message], None] = lambda _: None
        self.before: Callable[[Message], None] = lambda _: None
        self.keeps = True
        self.now = float(NOW)
        self.stopped = threading.Event()
        self.sender: Sender | None = None

    def deliver(self, message: Message, begin: Callable[[], None]) -> str:
        self.before(message)
        begin()
        self.decide(message)
        self.delivered.append(message)
        return ""

    def stop(self) -> None:
        self.stopped.set()

    def record(self, notice: Notice, body: dict[str, Any]) -> bool:
        if self.keeps:
            self.records.append((int(notice.id, 16), body["state"], body["attempt"], body.get("digest")))
        return self.keeps

    def start(self, *, per_minute: int = 20) -> Sender:
        """Begin with a backoff of a hundredth of a second."""
        self.sender = Sender(
            Terminal("terminal", frozenset({"firing"}), per_minute), self, self.record, lambda _, why: self.abandoned.append(why),
            self.said.append, backoff=_Quick(), wall=lambda: self.now,
        )  # fmt: skip
        self.sender.start()
        return self.sender

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, (self.records, self.said)
            time.sleep(0.005)


class _Quick(Backoff):
    """The real one would make a test wait."""

    def failed(self, floor: float = 0.0) -> float:
        super().failed(floor)
        return 0.01


@pytest.fixture
def desk() -> Iterator[Desk]:
    found = Desk()
    yield found
    if found.sender is not None:
        found.sender.stop()


def _fresh(*numbers: int) -> list[tuple[Notice, Tried]]:
    return [(firing(n), Tried()) for n in numbers]


def test_each_is_told_once_however_often_it_is_offered(desk: Desk) -> None:
    sender = desk.start()
    for _ in range(50):
        sender.offer(_fresh(1, 2, 3))
    desk.until(lambda: sender.waiting() == 0)
    sender.offer(_fresh(1, 2, 3))
    sender.offer(_fresh(1, 2, 3, 4))
    desk.until(lambda: len(desk.delivered) == 4)
    assert [r[:3] for r in desk.records] == [(n, s, 1) for n in (1, 2, 3, 4) for s in ("trying", "sent")]


def test_what_fails_is_tried_again_and_the_records_stay_few(desk: Desk) -> None:
    left = [20]

    def fail(_: Message) -> None:
        if left[0]:
            left[0] -= 1
            raise NotDelivered("nobody answers")

    desk.before = fail
    sender = desk.start()
    sender.offer(_fresh(1))
    desk.until(lambda: desk.delivered)
    assert [(state, attempt) for _, state, attempt, _ in desk.records] == [
        ("failed", 1), ("failed", 2), ("failed", 4), ("failed", 8), ("failed", 16), ("trying", 21), ("sent", 21),
    ]  # fmt: skip
    desk.until(lambda: sender.problem == "")
    assert desk.said[0] == "notifications by terminal: nobody answers; it is tried again"
    assert len(desk.said) == 2


def test_one_that_always_fails_does_not_keep_the_others_from_being_told(desk: Desk) -> None:
    def fail(message: Message) -> None:
        if message.id == firing(1).id:
            raise NotDelivered("this one breaks it", doubtful=True)

    desk.decide = fail
    sender = desk.start()
    sender.offer(_fresh(1, 2, 3))
    desk.until(lambda: len(desk.delivered) == 2)
    assert sender.waiting() == 1


def test_what_is_refused_waits_for_the_configuration(desk: Desk) -> None:
    refuse = [True]

    def decide(message: Message) -> None:
        if refuse[0] and message.id == firing(1).id:
            raise NotDelivered("554 no", refused=True, everything=False)

    desk.decide = decide
    sender = desk.start()
    sender.offer(_fresh(1, 2))
    desk.until(lambda: len(desk.delivered) == 1)
    assert not sender.is_busy()
    assert sender.waiting() == 1
    refuse[0] = False
    sender.retry()
    desk.until(lambda: len(desk.delivered) == 2)
    assert [r[:3] for r in desk.records if r[0] == 1] == [(1, "trying", 1), (1, "failed", 1), (1, "trying", 2), (1, "sent", 2)]


def test_after_a_day_it_is_abandoned_with_the_reason(desk: Desk) -> None:
    def fail(_: Message) -> None:
        desk.now += 10 * 3600
        raise NotDelivered("no route")

    desk.before = fail
    sender = desk.start()
    sender.offer(_fresh(1))
    desk.until(lambda: desk.abandoned)
    assert desk.abandoned == ["no route"]
    assert desk.records[-1][1] == "abandoned"
    assert desk.now - NOW > 86400
    sender.offer(_fresh(1))
    desk.until(lambda: sender.waiting() == 0)


def test_a_flood_is_one_message_and_each_has_its_record(desk: Desk) -> None:
    sender = desk.start(per_minute=3)
    sender.offer(_fresh(*range(50)))
    desk.until(lambda: sender.waiting() == 0)
    (message,) = desk.delivered
    digest = digest_id([firing(n) for n in range(50)])
    assert message.id == digest
    assert sorted(r for r in desk.records if r[1] == "sent") == [(n, "sent", 1, digest) for n in range(50)]


def test_no_more_messages_a_minute_than_that(desk: Desk) -> None:
    sender = desk.start(per_minute=3)
    sender.offer(_fresh(1, 2, 3))
    desk.until(lambda: len(desk.delivered) == 3)
    sender.offer(_fresh(*range(10)))
    desk.until(lambda: sender.waiting() == 7)
    assert sender._next(time.monotonic())[0] == []
    batch, _ = sender._next(time.monotonic() + 60)
    assert len(batch) == 7


def test_a_digest_that_was_begun_before_is_sent_again_as_it_was(desk: Desk) -> None:
    notices = [firing(n) for n in range(5)]
    digest = digest_id(notices)
    sender = desk.start()
    sender.offer([(n, Tried(1, "trying", digest, NOW * 10**9)) for n in notices] + _fresh(9))
    desk.until(lambda: len(desk.delivered) == 2)
    by_id = {message.id: message for message in desk.delivered}
    assert by_id[digest].repeated
    assert len(by_id[digest].records) == 5
    assert not by_id[firing(9).id].repeated


def test_one_that_was_begun_before_says_so_and_one_that_failed_does_not(desk: Desk) -> None:
    sender = desk.start()
    sender.offer([(firing(1), Tried(1, "trying", None, NOW * 10**9)), (firing(2), Tried(4, "failed", None, NOW * 10**9))])
    desk.until(lambda: len(desk.delivered) == 2)
    assert {message.id: message.repeated for message in desk.delivered} == {firing(1).id: True, firing(2).id: False}
    assert (2, "sent", 5, None) in desk.records


def test_a_disk_that_takes_no_record_does_not_silence_it_nor_repeat_it(desk: Desk) -> None:
    desk.keeps = False
    sender = desk.start()
    sender.offer(_fresh(1))
    desk.until(lambda: desk.delivered)
    desk.until(lambda: sender.waiting() == 1)
    sender.offer(_fresh(1))
    desk.keeps = True
    sender.retry()
    desk.until(lambda: desk.records == [(1, "sent", 1, None)])
    assert len(desk.delivered) == 1


def test_what_is_held_back_is_not_begun(desk: Desk) -> None:
    sender = desk.start()
    sender.offer(_fresh(1), hold={firing(1).run})
    assert sender.waiting() == 0
    sender.offer(_fresh(1))
    desk.until(lambda: desk.delivered)


def test_a_stop_cuts_off_what_hangs_and_leaves_it_begun(desk: Desk) -> None:
    def hang(_: Message) -> None:
        desk.stopped.wait(60)
        raise NotDelivered("cut off", doubtful=True)

    desk.decide = hang
    sender = desk.start()
    sender.offer(_fresh(1))
    desk.until(lambda: desk.records)
    sender.stop()
    assert desk.records == [(1, "trying", 1, None)]


def test_what_a_library_raises_is_a_failure_like_any_other(desk: Desk) -> None:
    def fail(_: Message) -> None:
        if not desk.said:
            raise RuntimeError("odd")

    desk.before = fail
    sender = desk.start()
    sender.offer(_fresh(1))
    desk.until(lambda: desk.delivered)
    assert "RuntimeError: odd" in desk.said[0]
