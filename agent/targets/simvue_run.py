"""One run on a Simvue server: found or made, brought up to date, its points and events posted once (see simvue_books.py)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from .port import Memory, Range, Refused, TooLarge, Unreachable, Verdict
from .simvue_api import Api, Batch, Rejected, RunThere
from .simvue_books import LOST, MARK, NAMES, RUN, SAID, SENDING, STATE, Books, Part, Said
from .simvue_fields import RunFields
from .simvue_known import DOUBLE, Job, Known, Never
from .simvue_state import Wanted, wanted
from .simvue_words import Item, plan

_MOST_ITEMS, _MOST_BYTES, _LEAST_BYTES = 16_000, 1 << 20, 8 << 10  # of a batch; the client has the first
_MOST_GAPS = 100
Owned = tuple[int, Item]  # an item, and which of the ranges it is of


class SimvueRun:
    """What is known of one run. Its ranges go one after another: the books hold only as long as one request is under way."""

    def __init__(self, api: Api, memory: Memory, run: str) -> None:
        self._api, self._memory, self.run = api, memory, run
        self.lock = asyncio.Lock()
        self.known: Known | None = None
        self._most_bytes = _MOST_BYTES
        self._fields = RunFields(api, run)

    async def look(self) -> Known | None:
        """Return the run as it is there; None when it is not. Raises Unreachable and Refused."""
        if self.known is not None:
            return self.known
        key = f"{self.run}/id"
        noted = (await self._memory.recall([key])).get(key)
        found = await self._api.run(noted) if noted else None
        if found is None or found.metadata.get(RUN) != self.run:
            found = await self._api.find(self.run)
            if found is not None:
                await self._memory.note({key: found.id})
        if found is not None:
            self.known = await self._read(found)
        return self.known

    async def _read(self, found: RunThere) -> Known:
        try:
            events = await self._api.count_events(found.id, exact=Books.awaits_events(found.metadata))
        except Rejected as error:
            raise Unreachable(f"{self._api.url} does not count the events of run {self.run}: {error}") from None
        metadata = dict(found.metadata)
        books = Books.read(metadata, found.points, events)
        return Known(found.id, books, metadata, dict(found.alerts), _texts(metadata.get(STATE)), _texts(metadata.get(NAMES)))

    async def _create(self, want: Wanted, note: str) -> Known:
        made = await self._fields.create(want, note)
        await self._memory.note({f"{self.run}/id": made.id})
        self.known = made
        return made

    async def ensure(self) -> str:
        """Return the run's id there; it is made where it is not there. Raises Never as well."""
        if self.known is not None:
            return self.known.id
        async with self.lock:
            known = await self.look()
            if known is None:
                known = await self._create(wanted(await self._memory.run_state(self.run)), "")
            return known.id

    async def deliver(self, ranges: Sequence[Range]) -> list[Verdict]:
        """Bring ranges of this run there: one verdict each. Raises OSError when the journal cannot be written."""
        async with self.lock:
            try:
                return await self._deliver(ranges)
            except (Unreachable, Refused, TooLarge) as error:
                self.known = None  # nobody knows what arrived: it is looked at anew
                return [Verdict("unsent", reason=str(error), after=getattr(error, "after", 0.0)) for _ in ranges]
            except Never as error:
                self.known = None
                return [Verdict("permanent", reason=str(error)) for _ in ranges]
            except BaseException:
                self.known = None
                raise

    async def _deliver(self, ranges: Sequence[Range]) -> list[Verdict]:
        known = await self.look()
        books = known.books if known is not None else Books()
        jobs: dict[int, Job] = {}
        for i, sent in enumerate(ranges):
            if sent.again or books.mark(sent.writer) >= sent.first - 1:
                jobs[i] = await self._job(sent, books, known.metadata if known is not None else {})
        if jobs:
            await self._bring(list(jobs.values()), known)
        return [_verdict(jobs[i]) if i in jobs else _gap(sent, books) for i, sent in enumerate(ranges)]

    async def _job(self, sent: Range, books: Books, metadata: Mapping[str, Any]) -> Job:
        made = await asyncio.to_thread(plan, sent, levels=self._api.levels)
        if sent.again:
            return Job(sent, made, sent.first - 1, made.points, made.events)
        after = books.mark(sent.writer)
        job = Job(sent, made, after, made.points, made.events)
        if after >= sent.first:  # it was taken before, in part or as a whole, and we have not heard, or forgot
            job.points, job.events = [p for p in made.points if p.seq > after], [e for e in made.events if e.seq > after]
            said = Said.read(metadata.get(SAID + sent.writer))
            job.refused = {seq: reason for seq, reason in said.refused.items() if sent.first <= seq <= min(after, sent.last)}
            if sent.first in said.doubles:
                job.remark(DOUBLE, "points and events of a request whose end was not known", said.doubles[sent.first])
        left = books.left.get(sent.writer)
        if left is not None and left.first == after + 1:
            job.points, points = _skip(job.points, left.points)
            job.events, events = _skip(job.events, left.events)
            job.had = points, events
            if left.doubtful:
                job.remark(DOUBLE, "points and events of a request whose end was not known", left.doubtful)
        return job

    async def _bring(self, jobs: list[Job], known: Known | None) -> None:
        """Post what the jobs have, then note that it is there, and the run's state."""
        ours = [job for job in jobs if not job.sent.again]
        points = [(i, item) for i, job in enumerate(ours) for item in job.points]
        events = [(i, item) for i, job in enumerate(ours) for item in job.events]
        batches = self._batches(points), self._batches(events)
        books = known.books if known is not None else Books()
        note = ""
        if points or events:
            parts = [Part(j.sent.writer, j.after + 1, j.sent.last, _size(j.points), _size(j.events)) for j in ours if j.points or j.events]
            note = books.note(parts, (_cuts(batches[0]), _cuts(batches[1])))
        stateful = known is None or any(job.plan.stateful for job in jobs)
        want = wanted(await self._memory.run_state(self.run)) if stateful else None
        if known is None:
            assert want is not None
            known = await self._create(want, note)
            books = known.books
        elif note:
            await self._fields.note(known, {SENDING: note})
        if note:
            await _both(self._post_all(known, "metrics", batches[0], ours), self._post_all(known, "events", batches[1], ours))
            if books.doubted:
                await self._look_for_more(known, ours[0])
        for job in jobs:
            if job.sent.again:
                await self._again(known, job)
        own = self._settle(known, ours, jobs)
        if own or want is not None:
            await self._fields.update(known, want, own, jobs)
        for job in jobs:
            await self._fields.folders(job)

    def _batches(self, items: list[Owned]) -> list[list[Owned]]:
        made: list[list[Owned]] = []
        room = 0
        for one in items:
            size = len(one[1].packed)
            if not made or size > room or len(made[-1]) >= _MOST_ITEMS:
                made.append([])
                room = self._most_bytes
            made[-1].append(one)
            room -= size
        return made

    async def _post_all(self, known: Known, kind: Batch, batches: list[list[Owned]], jobs: list[Job]) -> None:
        for batch in batches:
            bad = await self._post(known, kind, batch)
            good = sum(item.size for _, item in batch) - sum(item.size for _, item, _ in bad)
            for owner, item, reason in bad:
                jobs[owner].refused[item.seq] = reason
            if kind == "metrics":
                known.books.points += good
            else:
                known.books.events += good

    async def _post(self, known: Known, kind: Batch, batch: list[Owned]) -> list[tuple[int, Item, str]]:
        """Post a batch, in halves where the server does not take it; return what it refuses, with the reasons."""
        if not batch:
            return []
        try:
            await self._api.post(kind, known.id, [item for _, item in batch])
        except TooLarge as error:
            if len(batch) == 1:
                return [(*batch[0], str(error))]
            self._most_bytes = max(min(self._most_bytes, sum(len(item.packed) for _, item in batch)) // 2, _LEAST_BYTES)
        except Rejected as error:
            if error.status not in {400, 422}:
                raise Unreachable(f"{self._api.url} answers {error.status} to {kind} of run {self.run}: {error}") from None
            named = error.named(kind, len(batch))
            if len(batch) == 1:
                return [(*batch[0], named.get(0) or str(error))]
            if named:
                await self._in_halves(known)
                rest = [one for i, one in enumerate(batch) if i not in named]
                return [(*batch[i], reason) for i, reason in named.items()] + await self._post(known, kind, rest)
        else:
            return []
        await self._in_halves(known)
        middle = len(batch) // 2
        return await self._post(known, kind, batch[:middle]) + await self._post(known, kind, batch[middle:])

    async def _in_halves(self, known: Known) -> None:
        """The batches that were announced are not what is posted: note that counts will not tell how far it came."""
        if known.metadata.get(SENDING) == known.books.note():  # a single record that is sent again: nothing was announced
            return
        note = json.loads(known.metadata[SENDING])
        if not note.get("halves"):
            await self._fields.note(known, {SENDING: json.dumps({**note, "halves": True}, separators=(",", ":"))})

    async def _look_for_more(self, known: Known, job: Job) -> None:
        """After a request whose end was not known: it may have arrived behind our backs."""
        known.books.doubted = False
        found = await self._api.run(known.id)
        if found is None:
            raise Unreachable(f"run {self.run} is gone from {self._api.url}")
        fresh = await self._read(found)
        extra = max(fresh.books.points - known.books.points, 0) + max(fresh.books.events - known.books.events, 0)
        if extra:
            job.remark(DOUBLE, "points and events that the server has over what was sent", extra)
        known.books.points = max(known.books.points, fresh.books.points)
        known.books.events = max(known.books.events, fresh.books.events)

    async def _again(self, known: Known, job: Job) -> None:
        """Post a record that was refused before."""
        owned = [(0, item) for item in job.points], [(0, item) for item in job.events]
        await self._post_all(known, "metrics", self._batches(owned[0]), [job])
        await self._post_all(known, "events", self._batches(owned[1]), [job])
        if job.sent.doubtful and (job.points or job.events):
            job.remark(DOUBLE, "a refused record that was sent again, and its end was not known", _size(job.points) + _size(job.events))

    def _settle(self, known: Known, ours: list[Job], jobs: list[Job]) -> dict[str, Any]:
        """Close the books over the jobs; return what the run's metadata are to say of it."""
        own: dict[str, Any] = {}
        for job in ours:
            sent = job.sent
            if sent.last > known.books.mark(sent.writer):
                doubles = sum(remark.count for remark in job.remarks if remark.what == DOUBLE)
                if job.refused or doubles:
                    said = Said.read(known.metadata.get(SAID + sent.writer))
                    said.refused.update(job.refused)
                    if doubles:
                        said.doubles[sent.first] = doubles
                    own[SAID + sent.writer] = said.written()
                known.books.settle(sent.writer, sent.last, sent.chain_after, *job.had)
                own[MARK + sent.writer] = known.books.written(sent.writer)
                if job.plan.gaps:
                    key = LOST + sent.writer
                    before = _list(known.metadata.get(key))
                    own[key] = json.dumps([*before, *([g.seq, g.last, g.reason] for g in job.plan.gaps)][-_MOST_GAPS:])
        for job in jobs:
            said = Said.read(known.metadata.get(SAID + job.sent.writer))
            if job.sent.again and not job.refused and said.refused.pop(job.sent.first, None) is not None:
                own[SAID + job.sent.writer] = said.written()
        renamed = {ours_: there for job in jobs for ours_, there in job.plan.renamed.items()}
        if not renamed.items() <= known.names.items():
            known.names.update(renamed)
            own[NAMES] = json.dumps(known.names)
        if own:
            own[SENDING] = known.books.note()
        return own


def _verdict(job: Job) -> Verdict:
    sent = job.sent
    refused = sorted({**job.plan.refused, **job.refused}.items())
    return Verdict("accepted", sent.last, sent.chain_after, refused=refused, remarks=[*job.plan.remarks(sent), *job.remarks])


def _gap(sent: Range, books: Books) -> Verdict:
    mark, chain = books.marks.get(sent.writer, (0, 0))
    return Verdict("retry", mark, chain, "gap")


def _size(items: Sequence[Item]) -> int:
    return sum(item.size for item in items)


def _skip(items: list[Item], points: int) -> tuple[list[Item], int]:
    """Leave out the first items that are so many points together; return the others, and how many those were."""
    at = had = 0
    while at < len(items) and had + items[at].size <= points:
        had += items[at].size
        at += 1
    return items[at:], had


def _cuts(batches: list[list[Owned]]) -> list[int]:
    made, total = [], 0
    for batch in batches:
        total += sum(item.size for _, item in batch)
        made.append(total)
    return made


def _texts(value: Any) -> dict[str, str]:
    try:
        found = json.loads(str(value or "{}"))
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    try:
        found = json.loads(str(value or "[]"))
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


async def _both(one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Do both side by side; when one fails, the other is not left running."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
