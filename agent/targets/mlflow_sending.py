"""Sending ranges of one run to MLflow: points, then records that are not points as files, then params, tags and marks, then the status.

A range's mark is a tag of its run, set behind everything else of it: MLflow stores a batch's params, then its metrics, then its tags. So a
mark never claims what is not there, and a range whose end was never known is sent again only when its mark is not there. Sending it twice
changes nothing: equal points are one, a file of records is replaced by the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .mlflow_api import Api, Rejected, RunThere, batch
from .mlflow_runs import Entry, Runs, mark_text
from .mlflow_state import ALERTS, MARK, NAME, TAG, Wanted, wanted
from .mlflow_words import PARAMS, PER_REQUEST, TAGS, Metric, Plan, Seen, plan, records_path
from .port import Range, Remark, TooLarge, Unreachable, Verdict

# batches of one run under way: a server that is near is only slower with two, one that is far would wait for each to travel
_AT_ONCE, _FAR = 2, 0.03  # s
_BODY = 900_000  # bytes; MLflow's limit is 1 MB
_SMALL, _MOST_SMALL, _SMALL_BYTES = 128 << 10, 32, 512 << 10  # files of records that are put together
_WRITERS = 32  # whose latest such files are remembered: 16 MB at worst


class Vanished(Exception):
    """Raised when the server does not know a run any more."""


@dataclass(slots=True)
class _Request:
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    def body(self) -> bytes:
        return batch([m[:4] for m in self.metrics], self.params, self.tags)

    def halves(self) -> tuple[_Request, _Request]:
        """Return two smaller ones, of which the first holds the params and the second the tags where it has several sorts."""
        if sum(map(bool, (self.metrics, self.params, self.tags))) > 1:
            first = _Request(params=self.params) if self.params else _Request(metrics=self.metrics)
            return first, _Request(self.metrics if self.params else [], {}, self.tags)
        middle = len(self) // 2
        params, tags = list(self.params.items()), list(self.tags.items())
        return (
            _Request(self.metrics[:middle], dict(params[:middle]), dict(tags[:middle])),
            _Request(self.metrics[middle:], dict(params[middle:]), dict(tags[middle:])),
        )


class _Batches:
    """Full batches of a plan in the making, with their bodies. One `next` at a time, in any thread."""

    def __init__(self, made: Plan, steps: Iterator[int], fresh: Sequence[bool]) -> None:
        self._made, self._steps, self._fresh = made, steps, fresh
        self._at = 0
        self.left: list[Metric] = []

    def next(self, most: int) -> tuple[_Request, bytes] | None:
        """Return the next batch of `most` metrics; None when fewer are `left` and the plan is made."""
        metrics = self._made.metrics
        while len(self.left) < most and (next(self._steps, 0) or self._at < len(metrics)):
            end = len(metrics)
            self.left += [m for m in metrics[self._at : end] if self._fresh[m.of]]
            self._at = end
        if len(self.left) < most:
            return None
        request, self.left = _Request(self.left[:most]), self.left[most:]
        return request, request.body()


@dataclass(slots=True)
class _Told:
    """What the server did not take: reasons by (range, record) and by the key of a param or tag."""

    records: dict[tuple[int, int], str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


class Sender:
    """Sends runs' ranges. Of one run, one `send` goes on at a time."""

    def __init__(self, api: Api, runs: Runs) -> None:
        self._api, self._runs = api, runs
        self._seen = Seen()
        self._most = PER_REQUEST
        self._small: OrderedDict[tuple[str, str], list[tuple[int, int, bytes]]] = OrderedDict()

    def forget(self) -> None:
        """Know nothing of files that a server has: it may be another one."""
        self._small.clear()

    async def send(self, run: str, ranges: Sequence[Range]) -> list[Verdict]:
        """Send ranges of one run; one verdict each. Raises Refused."""
        entry = self._runs.entry(run)
        async with entry.sending:
            try:
                return await self._send(entry, ranges)
            except Unreachable as error:
                return [Verdict("unsent", reason=str(error), after=error.after)] * len(ranges)
            except Vanished:
                entry.there, entry.stated = None, False
                return [Verdict("unsent", reason=f"run {run} is gone from {self._api.url}: it is looked for again")] * len(ranges)
            except Rejected as error:
                return [Verdict("unsent", reason=f"{self._api.url} says {error.status}: {error}")] * len(ranges)

    async def _send(self, entry: Entry, ranges: Sequence[Range]) -> list[Verdict]:
        there = await self._runs.ensure(entry)
        if there.deleted:
            return [self._in_bin(entry)] * len(ranges)
        verdicts = [self._known(entry, r) for r in ranges]
        taken = [i for i, v in enumerate(verdicts) if v is None or v.kind == "accepted"]
        chosen = [ranges[i] for i in taken]
        fresh = [verdicts[i] is None for i in taken]
        made, told = Plan(), _Told()
        left = await self._log_points(entry, made, plan(made, entry.run, chosen, self._seen), fresh, told)
        if left is None:
            return [self._in_bin(entry)] * len(ranges)
        for n, sent in enumerate(chosen):
            if fresh[n] and made.lines[n]:
                await self._put_records(entry, there, sent, made, n)
        state = Wanted()
        remarks: list[tuple[str, str]] = []
        if not entry.stated or any(made.stateful):
            state = wanted(await self._runs.memory.run_state(entry.run), there.params, there.tags)
            await self._put_alerts(entry, there, state)
        marks = {MARK + sent.writer: mark_text(sent.last, sent.chain_after) for n, sent in enumerate(chosen) if fresh[n]}
        requests = self._requests(there, left, made, state, marks)
        for request in requests:
            if not await self._log(entry, request, told):
                return [self._in_bin(entry)] * len(ranges)
        for request in requests:
            for key in (*request.params, *request.tags):
                if key in told.keys:
                    remarks.append(("not kept", f"{key}: {told.keys[key]}"))
                elif key in state.changes:
                    remarks.append(state.changes[key])
        if state.tags:
            await self._finish(there, state)
            entry.stated = True
        for n, i in enumerate(taken):
            sent, refused = chosen[n], made.refused[n]
            refused |= {seq: reason for (of, seq), reason in told.records.items() if of == n}
            own = made.remarks[n] + [Remark(entry.run, what, detail, 1, sent.writer, sent.first) for what, detail in remarks if n == 0]
            verdicts[i] = Verdict("accepted", sent.last, sent.chain_after, refused=sorted(refused.items()), remarks=own)
        return [v for v in verdicts if v is not None]

    def _in_bin(self, entry: Entry) -> Verdict:
        there = entry.there
        entry.there, entry.stated = None, False  # it may be taken out again
        id_there = there.id if there is not None else ""
        return Verdict("permanent", reason=f"the run was deleted in MLflow: `mlflow runs restore --run-id {id_there}`, then `agent retry`")

    def _known(self, entry: Entry, sent: Range) -> Verdict | None:
        """Return what the run's mark says of a range; None when it is to be sent."""
        mark, chain = entry.mark(sent.writer)
        if mark > sent.last or (mark == sent.last and chain == sent.chain_after):
            return Verdict("accepted", sent.last, sent.chain_after)
        if sent.first > mark + 1:
            return Verdict("retry", mark, chain, "gap")
        before = json.loads(sent.data[4 : 4 + int.from_bytes(sent.data[:4], "little")])["chain"]
        if mark == sent.last or (sent.first == mark + 1 and chain != before):
            return Verdict("permanent", mark, chain, "conflict: MLflow has other records of this writer (was a machine cloned?)")
        return None

    def _requests(
        self, there: RunThere, metrics: Sequence[Metric], made: Plan, state: Wanted, marks: dict[str, str]
    ) -> list[_Request]:  # fmt: skip
        """Return what is to be logged, in its order; the marks come last."""
        found = [_Request(list(metrics[at : at + self._most])) for at in range(0, len(metrics), self._most)]
        params = {key: value for key, value in state.params.items() if key not in there.params}
        tags = {NAME + key: name for key, name in made.renamed.items()} | state.tags
        tags = {key: value for key, value in tags.items() if there.tags.get(key) != value}
        if not params and not tags and not marks:
            return found
        states = [_Request()]
        size = 0
        for sort, limit, values in (("params", PARAMS, params), ("tags", TAGS, tags | marks)):
            for key, value in values.items():
                cost = 40 + len(json.dumps(key)) + len(json.dumps(value))
                if len(getattr(states[-1], sort)) >= limit or size + cost > _BODY:
                    states.append(_Request())
                    size = 0
                getattr(states[-1], sort)[key] = value
                size += cost
        if found and len(states) == 1 and len(found[-1]) + len(states[0]) <= self._most and size < _BODY // 2:
            found[-1].params, found[-1].tags = states[0].params, states[0].tags
            return found
        return found + states

    async def _log_points(
        self, entry: Entry, made: Plan, steps: Iterator[int], fresh: Sequence[bool], told: _Told
    ) -> list[Metric] | None:  # fmt: skip
        """Plan to the end, in a thread, and send full batches meanwhile, each made ready while another travels: the order of points
        means nothing to MLflow.

        Returns the metrics that are left, fewer than a batch; None when the run lies in the bin.
        """
        batches = _Batches(made, steps, fresh)
        at_once = _AT_ONCE if self._api.quickest > _FAR else 1
        going: set[asyncio.Task[bool | Exception]] = set()
        ahead = asyncio.create_task(asyncio.to_thread(batches.next, self._most))
        try:
            while (ready := await ahead) is not None:
                ahead = asyncio.create_task(asyncio.to_thread(batches.next, self._most))
                going.add(asyncio.create_task(self._outcome(entry, *ready, told)))
                if len(going) >= at_once:
                    done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                    if not _all_taken(done):
                        return None
        except asyncio.CancelledError:
            for task in going:
                task.cancel()
            raise
        finally:
            await asyncio.wait({*going, ahead})
        return batches.left if _all_taken(going) else None

    async def _outcome(self, entry: Entry, request: _Request, body: bytes, told: _Told) -> bool | Exception:
        """Do as `_log`, and return what it raises: of several that fail, one is raised."""
        try:
            return await self._log(entry, request, told, body)
        except Exception as error:  # noqa: BLE001 - raised by who waits
            return error

    async def _log(self, entry: Entry, request: _Request, told: _Told, body: bytes = b"") -> bool:
        """Send a batch (`body`, where that is made already), in parts where the server does not take it whole.

        Returns False when its run lies in the bin. Raises Vanished.
        """
        there = entry.there
        assert there is not None
        try:
            await self._api.log(there.id, body or request.body())
        except TooLarge as error:
            self._most = max(50, min(self._most, len(request) // 2))
            return await self._in_parts(entry, request, told, str(error))
        except Rejected as error:
            if error.is_gone:
                raise Vanished from None
            now = await self._api.run(there.id)
            if now is None:
                raise Vanished from None
            if now.deleted:
                return False
            return await self._in_parts(entry, request, told, str(error))
        there.params |= request.params
        there.tags |= request.tags
        return True

    async def _in_parts(self, entry: Entry, request: _Request, told: _Told, reason: str) -> bool:
        if len(request) > 1:
            first, second = request.halves()
            return await self._log(entry, first, told) and await self._log(entry, second, told)
        for metric in request.metrics:
            told.records[metric.of, metric.seq] = f"metric {metric.key}: {reason}"
        for key in (*request.params, *request.tags):
            if key.startswith(MARK):
                raise Unreachable(f"{self._api.url} does not take the tag {key}: {reason}")
            told.keys[key] = reason
        return True

    async def _finish(self, there: RunThere, state: Wanted) -> None:
        """Bring what is replaced as a whole: tags that were taken away, the name, the status."""
        for key in [key for key in there.tags if key.startswith(TAG) and key not in state.tags]:
            await self._api.forget_tag(there.id, key)
            del there.tags[key]
        name = state.name if state.name and state.name != there.name else ""
        if name or state.status != there.status or (state.end is not None and state.end != there.end):
            try:
                await self._api.update(there.id, state.status, state.end, name)
            except Rejected as error:
                if error.is_gone:
                    raise Vanished from None
                raise
            there.status, there.name = state.status, name or there.name
            there.end = state.end if state.end is not None else there.end

    async def _put_alerts(self, entry: Entry, there: RunThere, state: Wanted) -> None:
        if state.alerts and state.alerts != entry.alerts and there.files is not None:
            with contextlib.suppress(Rejected, TooLarge):  # its records have them all
                await self._api.put(f"{there.files}/{ALERTS}", state.alerts.encode())
            entry.alerts = state.alerts

    async def _put_records(self, entry: Entry, there: RunThere, sent: Range, made: Plan, n: int) -> None:
        """Write a range's records that are not points into a file of its own; put its writer's latest small ones together now and then."""
        data = made.lines[n]
        if there.files is None:
            what = "events and other records that are not points: the server serves no artifacts (`mlflow server --serve-artifacts`)"
            made.remarks[n].append(Remark(entry.run, "not kept", what, data.count(b"\n"), sent.writer, sent.first))
            return
        place = f"{there.files}/{records_path(sent.writer, sent.first, sent.last)}"
        refused, why = await self._put_lines(place, data)
        if refused:
            what = f"events and other records that are not points: {why}"
            made.remarks[n].append(Remark(entry.run, "not kept", what, refused, sent.writer, sent.first))
            return
        small = self._small_of(entry.run, sent.writer)
        if len(data) >= _SMALL:
            return
        small.append((sent.first, sent.last, data))
        if len(small) < 2 or (len(small) < _MOST_SMALL and sum(len(d) for _, _, d in small) < _SMALL_BYTES):
            return
        first, last, whole = small[0][0], small[-1][1], b"".join(d for _, _, d in small)
        old = list(small)
        small[:] = [(first, last, whole)] if len(whole) < _SMALL else []
        try:
            await self._api.put(f"{there.files}/{records_path(sent.writer, first, last)}", whole)
            for a, b, _ in old:
                await self._api.remove(f"{there.files}/{records_path(sent.writer, a, b)}")
        except (Rejected, TooLarge):
            return  # they stay as they are; lines that are there twice are told apart by writer and seq

    async def _put_lines(self, place: str, data: bytes) -> tuple[int, str]:
        """Write lines, in several files where the server takes only smaller ones; return how many it does not take, and why."""
        try:
            await self._api.put(place, data)
        except Rejected as error:
            return data.count(b"\n"), f"the server says {error}"
        except TooLarge as error:
            lines = data.splitlines(keepends=True)
            if len(lines) == 1:
                return 1, str(error)
            stem, middle = place.removesuffix(".jsonl"), len(lines) // 2
            first = await self._put_lines(f"{stem}a.jsonl", b"".join(lines[:middle]))
            second = await self._put_lines(f"{stem}b.jsonl", b"".join(lines[middle:]))
            return first[0] + second[0], first[1] or second[1]
        return 0, ""

    def _small_of(self, run: str, writer: str) -> list[tuple[int, int, bytes]]:
        """Return a writer's latest files of records: (first, last, bytes)."""
        found = self._small.setdefault((run, writer), [])
        self._small.move_to_end((run, writer))
        if len(self._small) > _WRITERS:
            self._small.popitem(last=False)  # its files stay as they are
        return found


def _all_taken(tasks: Iterable[asyncio.Task[bool | Exception]]) -> bool:
    """Say whether all of these batches were taken. Raises what one of them ended with."""
    outcomes = [task.result() for task in tasks]
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return all(outcomes)
