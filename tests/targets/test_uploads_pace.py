"""The cap on a target's bandwidth: the rate holds over any time, records go first, and no file stands still."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable

from simspool.agent.targets.pace import Pace


class Simulated:
    """A clock whose time passes when everybody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + max(seconds, 0.0), next(self._numbers), future))
        await future

    async def pass_until(self, end: float) -> None:
        while True:
            for _ in range(20):
                await asyncio.sleep(0)  # whoever can go on does
            if not self._sleepers or self._sleepers[0][0] > end:
                self.now = end
                return
            at, _, future = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            if not future.done():
                future.set_result(None)


Log = list[tuple[float, int]]
Sender = Callable[[Pace, Simulated, Log], Awaitable[None]]


def simulate(rate: float, seconds: float, *senders: Sender) -> list[Log]:
    """Have senders send for so long; return what each sent, as (time from the beginning, bytes)."""

    async def world() -> list[Log]:
        clock = Simulated()
        pace = Pace(rate, clock)
        logs: list[Log] = [[] for _ in senders]
        tasks = [asyncio.ensure_future(sender(pace, clock, log)) for sender, log in zip(senders, logs, strict=True)]
        await clock.pass_until(100.0 + seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [[(at - 100.0, size) for at, size in log] for log in logs]

    return asyncio.run(world())


def endless(size: int, *, bulk: bool) -> Sender:
    async def send(pace: Pace, clock: Simulated, log: Log) -> None:
        while True:
            await pace.take(size, bulk=bulk)
            log.append((clock.now, size))

    return send


def every(interval: float, size: int, waits: list[float]) -> Sender:
    async def send(pace: Pace, clock: Simulated, log: Log) -> None:
        while True:
            await clock.sleep(interval)
            began = clock.now
            await pace.take(size)
            waits.append(clock.now - began)
            log.append((clock.now, size))

    return send


def total(log: Log) -> int:
    return sum(size for _, size in log)


def test_over_any_time_no_more_than_the_rate_and_a_small_burst() -> None:
    rng = random.Random(5)

    async def ragged(pace: Pace, clock: Simulated, log: Log) -> None:
        while True:
            size = rng.randint(1, pace.block(1 << 20))
            await pace.take(size, bulk=rng.random() < 0.5)
            log.append((clock.now, size))
            if rng.random() < 0.05:
                await clock.sleep(rng.random() * 3)

    logs = simulate(1e6, 60.0, ragged, ragged, ragged)
    sent = sorted(itertools.chain(*logs))
    assert 30e6 < total(sent) <= 60e6 + 0.25e6 + 50_000
    for first in range(0, len(sent), 7):
        passed = 0
        for at, size in sent[first : first + 200]:
            passed += size
            assert passed <= (at - sent[first][0] + 0.25) * 1e6 + 2 * 50_000 + 1


def test_one_sender_gets_the_whole_rate_whichever_kind() -> None:
    for bulk in (False, True):
        [log] = simulate(200_000, 30.0, endless(10_000, bulk=bulk))
        assert 0.98 * 200_000 * 30 < total(log) < 1.02 * 200_000 * 30 + 60_000


def test_records_wait_for_one_block_of_files_at_most() -> None:
    waits: list[float] = []
    files = [endless(5_000, bulk=True) for _ in range(6)]
    logs = simulate(100_000, 60.0, every(1.0, 5_000, waits), *files)
    assert len(waits) > 50
    assert max(waits) < 0.11  # two blocks of a twentieth of a second
    assert sum(map(total, logs)) > 0.95 * 100_000 * 60


def test_files_keep_an_eighth_beside_records_without_end() -> None:
    records, *files = simulate(100_000, 60.0, endless(5_000, bulk=False), endless(5_000, bulk=True), endless(5_000, bulk=True))
    share = sum(map(total, files)) / (total(records) + sum(map(total, files)))
    assert 0.1 < share < 0.15
    for log in files:
        pauses = [b - a for (a, _), (b, _) in itertools.pairwise(log)]
        assert max(pauses) < 2.0


def test_files_share_fairly() -> None:
    logs = simulate(100_000, 30.0, *[endless(5_000, bulk=True) for _ in range(6)])
    assert max(map(total, logs)) - min(map(total, logs)) <= 25_000 + 2 * 5_000  # the first may have the burst to itself


def test_who_gives_up_waiting_leaves_the_line() -> None:
    async def world() -> None:
        clock = Simulated()
        pace = Pace(1000.0, clock)
        first = asyncio.ensure_future(pace.take(10_000))
        second = asyncio.ensure_future(pace.take(100))
        third = asyncio.ensure_future(pace.take(100, bulk=True))
        await clock.pass_until(100.1)
        assert first.done()
        assert not second.done()
        second.cancel()
        await clock.pass_until(112.0)
        assert second.cancelled()
        assert third.done()

    asyncio.run(world())


def test_blocks_are_small_enough_to_take_turns() -> None:
    assert Pace(1e9).block(1 << 18) == 1 << 18
    assert Pace(100_000.0).block(1 << 18) == 5000
    assert Pace(1.0).block(1 << 18) == 64
