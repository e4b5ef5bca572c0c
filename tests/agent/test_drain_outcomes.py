"""What a sync comes to when the spool lacks bytes, or the target says odd things; fairness, many writers, drops."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from in_process import drains_of, serve, sync, the_drain, total, until
from memory_target import MemoryTarget
from recorded import add_file, begin, fill, killed, whole

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.backoff import Backoff
from simspool.agent.ingest import Ingest
from simspool.agent.status import overview, show_run
from simspool.agent.targets.port import Limits, Poison, Range, Refused, TooLarge, Unreachable, Verdict
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Durability, Kind, Spool, Writer, ids, layout, segment_header

# ---------------------------------------------------------------------- what the spool lacks


def take_in(spool: Spool) -> None:
    """Have everything in the catalog, as an agent leaves it."""
    catalog = Catalog(catalog_path(spool))
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    ingest.close()
    catalog.close()


def test_a_missing_and_a_damaged_blob_end_in_incomplete_at_once_and_the_others_go_on(spool: Spool, tmp_path: Path) -> None:
    digests = []
    for n in range(3):
        (tmp_path / f"f{n}").write_bytes(os.urandom(1000))
        run, writer = begin(spool, f"r{n}")
        digests.append((run, add_file(spool, run, writer, tmp_path / f"f{n}")))
        writer.close({"status": "completed"})
    (run, gone), (other, damaged), (_, good) = digests
    os.unlink(os.path.join(spool.run(run).blobs, gone))
    path = os.path.join(spool.run(other).blobs, damaged)
    os.chmod(path, 0o600)
    Path(path).write_bytes(b"\0" * 1000)
    target = MemoryTarget()
    began = time.monotonic()
    report = sync(spool, target)
    assert time.monotonic() - began < 5
    assert (report.state, report.exit_code, report.records_left, report.files_left) == ("incomplete", 7, 0, 2)
    assert target.blobs == {good}
    assert "gone" in report.problems[gone]
    assert "damaged" in report.problems[damaged]
    Path(path).write_bytes((tmp_path / "f1").read_bytes())  # restored
    shutil.copy(tmp_path / "f0", os.path.join(spool.run(run).blobs, gone))
    assert sync(spool, target).state == "done"
    assert target.blobs == {gone, damaged, good}


def test_a_damaged_blob_is_taken_from_another_run_that_has_a_good_copy(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(os.urandom(1000))
    paths = []
    for n in range(2):
        run, writer = begin(spool, f"r{n}")
        digest = add_file(spool, run, writer, tmp_path / "f")
        writer.close({"status": "completed"})
        paths.append(Path(spool.run(run).blobs) / digest)
    os.unlink(paths[0])
    paths[0].write_bytes(b"\1" * 1000)
    target = MemoryTarget()
    assert sync(spool, target, timeout=20.0).state == "done"
    assert target.blobs == {digest}


def test_a_segment_that_vanished_ends_in_incomplete_at_once_and_the_others_go_on(spool: Spool) -> None:
    bad, good = whole(spool, "bad", points=5), whole(spool, "good", points=5)
    take_in(spool)
    [path] = [p for p in layout.walk_files(spool.run(bad).writers) if p.endswith(".seg")]
    os.unlink(path)
    target = MemoryTarget()
    began = time.monotonic()
    report = sync(spool, target)
    assert time.monotonic() - began < 5
    assert (report.state, report.records_left) == ("incomplete", 10)
    assert "restore it from a copy" in " ".join(report.problems.values())
    assert total(target) == 10
    assert good


def test_a_frame_damaged_after_it_was_taken_in_never_blocks_its_writer_for_good(spool: Spool) -> None:
    run = whole(spool, "bad", points=50)
    take_in(spool)
    [path] = [p for p in layout.walk_files(spool.run(run).writers) if p.endswith(".seg")]
    data = bytearray(Path(path).read_bytes())
    data[2000] ^= 1
    os.chmod(path, 0o600)
    Path(path).write_bytes(bytes(data))
    target = MemoryTarget()
    target.before_send = lambda ranges: [Verdict("permanent", 0, 0, "malformed") for _ in ranges]
    report = sync(spool, target)
    assert report.state == "incomplete"
    assert "agent check" in " ".join(report.problems.values())
    data[2000] ^= 1
    Path(path).write_bytes(bytes(data))
    target.before_send = lambda _: None
    assert sync(spool, target).state == "done"


# ---------------------------------------------------------------------- what targets say


def test_requests_that_are_too_large_are_cut_down_to_single_frames(spool: Spool) -> None:
    run, writer = begin(spool)
    fill(writer, 3000)
    writer.close({"status": "completed"})
    target = MemoryTarget()

    def small(ranges: Sequence[Range]) -> None:
        if sum(len(r.data) for r in ranges) > 20_000:
            raise TooLarge("413")

    target.before_send = small
    assert sync(spool, target).state == "done"
    assert total(target) == 3002
    assert max(sum(n for *_, n in request) for request in target.requests) <= 20_000
    assert run


@pytest.mark.parametrize("limits", [Limits(ranges=1), Limits(decoded=100, body=1), Limits(ranges=2, decoded=50_000)])
def test_small_limits_of_a_server_are_kept_and_everything_arrives(spool: Spool, limits: Limits) -> None:
    for n in range(5):
        whole(spool, f"r{n}", points=30)
    target = MemoryTarget(limits)
    assert sync(spool, target).state == "done"
    assert total(target) == 5 * 35
    assert max(len(request) for request in target.requests) <= limits.ranges


def test_one_poison_range_among_good_ones_is_refused_and_the_rest_arrives(spool: Spool) -> None:
    runs = [whole(spool, f"r{n}", points=10) for n in range(7)]
    target = MemoryTarget()

    def poison(ranges: Sequence[Range]) -> None:
        if any(r.run == runs[3] for r in ranges):
            raise Poison("400: bad")

    target.before_send = poison
    report = sync(spool, target)
    assert (report.state, report.refused, report.exit_code) == ("done", 15, 4)
    assert total(target) == 6 * 15


def test_a_mark_beyond_ours_is_compared_and_kept(spool: Spool) -> None:
    run, writer = begin(spool)
    fill(writer, 100)
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    shutil.rmtree(Path(spool.agent) / "w")
    os.unlink(catalog_path(spool))
    fill(writer, 5, start=100)
    target.requests.clear()
    assert sync(spool, target).state == "done"
    assert total(target) == 106
    # and a server whose mark is beyond everything we have ever seen: what it has, is compared when we come to it
    [(name, _)] = target.marks_of.items()
    target.marks_of[name] = (10_000, 1)
    fill(writer, 5, start=105)
    assert sync(spool, target).state == "done"
    assert run


def test_a_mark_that_is_too_low_is_gone_back_to(spool: Spool) -> None:
    run, writer = begin(spool)
    fill(writer, 100)
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    target.marks_of.clear()
    fill(writer, 5, start=100)
    assert sync(spool, target).state == "done"
    assert total(target) == 106
    assert run


def test_an_accepted_range_with_another_chain_is_a_conflict(spool: Spool) -> None:
    whole(spool, points=10)
    target = MemoryTarget()
    target.after_send = lambda verdicts: [Verdict("accepted", v.mark, v.chain ^ 1) for v in verdicts]
    report = sync(spool, target)
    assert report.refused == 15
    assert "conflict" in " ".join(report.problems.values())


def test_records_that_are_refused_are_counted_and_status_balances(spool: Spool) -> None:
    whole(spool, points=10)
    target = MemoryTarget()
    target.after_send = lambda verdicts: [
        Verdict(v.kind, v.mark, v.chain, "", [(3, "no such kind"), (4, "no such kind")]) for v in verdicts
    ]
    report = sync(spool, target)
    assert (report.state, report.refused, report.exit_code) == ("done", 2, 4)
    second, writer = begin(spool, "waiting")
    fill(writer, 3)
    catalog = Catalog(catalog_path(spool))
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    found = overview(catalog, spool, [KnownTarget("server", "", "memory://", True, "memory")])["records"]
    assert (found["recorded"], found["acknowledged"], found["waiting"], found["refused"]) == (19, 13, 4, 2)
    ingest.close()
    catalog.close()
    assert second


def test_a_server_that_asks_for_an_hour_ends_a_sync_at_once_and_one_that_asks_for_a_moment_does_not(spool: Spool) -> None:
    whole(spool, points=10)
    target = MemoryTarget()

    def later(seconds: float) -> Callable[[], None]:
        asked = [False]

        def connect() -> None:
            if not asked[0]:
                asked[0] = True
                raise Unreachable("busy", seconds)

        return connect

    target.before_connect = later(3600)
    began = time.monotonic()
    assert sync(spool, target).state == "unreachable"
    assert time.monotonic() - began < 5
    target.before_connect = later(0.3)
    assert sync(spool, target).state == "done"


def test_a_sync_beside_an_agent_in_a_long_backoff_tries_at_once(spool: Spool) -> None:
    target = MemoryTarget()
    whole(spool, points=10)
    away = [True]

    def connect() -> None:
        if away[0]:
            raise Unreachable("away")

    target.before_connect = connect

    async def day() -> None:
        stop = asyncio.Event()
        async with Agent(AgentConfig(spool, "memory://"), target=target, backoff=Backoff(lambda: 0.99)) as agent:
            serving = asyncio.create_task(agent.serve(stop))
            async with asyncio.timeout(20):
                await until(lambda: drains_of(agent) and the_drain(agent).failures >= 2)
                the_drain(agent)._backoff.failures = 10  # as after hours
                the_drain(agent).retry()
                await until(lambda: the_drain(agent).failures >= 11)
                away[0] = False
                report = await agent.sync()
            stop.set()
            await serving
            assert report.state == "done"

    began = time.monotonic()
    asyncio.run(day())
    assert time.monotonic() - began < 15


def test_a_refused_token_ends_a_sync_at_once(spool: Spool) -> None:
    whole(spool, points=10)
    target = MemoryTarget()

    def connect() -> None:
        raise Refused("the token")

    target.before_connect = connect
    assert sync(spool, target).state == "refused"


# ---------------------------------------------------------------------- fairness, many writers, drops


def test_a_huge_run_does_not_starve_small_ones(spool: Spool) -> None:
    huge, writer = begin(spool, "huge")
    fill(writer, 150_000)
    writer.close({"status": "completed"})
    small = [whole(spool, f"s{n}", points=10) for n in range(20)]
    target = MemoryTarget()
    order: list[str] = []
    target.before_send = lambda ranges: order.extend(r.run for r in ranges)
    assert sync(spool, target).state == "done"
    last_small = max(i for i, run in enumerate(order) if run in small)
    assert len(target.requests) >= 2
    first_requests = {w for request in target.requests[:2] for w, *_ in request}
    assert len(first_requests) == 21
    assert order.count(huge) >= 2
    assert last_small < len(order)


def test_sixty_four_live_writers_of_one_run_arrive_whole(spool: Spool) -> None:
    run, first = begin(spool)
    ranks = [Writer(spool.run(run).writers, ids.from_text(run), durability=Durability.LAZY, rank=n) for n in range(64)]
    for rank, writer in enumerate(ranks):
        writer.record(Kind.ATTACH, {"reason": "attach", "rank": rank})
    target = MemoryTarget()

    async def story(agent: Agent) -> None:
        for part in range(5):
            for writer in ranks:
                fill(writer, 20, start=20 * part)
            await asyncio.sleep(0.05)
        for writer in [first, *ranks]:
            writer.close({"status": "completed"})
        await until(lambda: total(target) == 2 + 64 * 102)
        assert show_run(agent.catalog, spool, run, "memory")["metrics"]["loss"]["count"] == 64 * 100

    serve(spool, target, story)
    assert target.twice == 0


def test_drops_of_a_killed_writer_are_shown(spool: Spool) -> None:
    run = killed(spool, points=3)
    [path] = [p for p in layout.walk_files(spool.run(run).writers) if p.endswith(".open")]
    seed = segment_header.seed(ids.from_text(Path(path).parent.name), 1)
    count = (9).to_bytes(8, "little")
    slot = count + zlib.crc32(b"\0" + count, seed).to_bytes(4, "little") + bytes(4)
    with open(path, "r+b") as f:
        f.seek(256 + 16)  # disk full, slot 9 mod 2
        f.write(slot)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    for _ in range(2):
        ingest.scan()
        ingest.read()
        ingest.read()
        ingest.bury()
    assert list(overview(catalog, spool, [])["records"]["dropped"].values()) == [9]


def test_what_a_sync_itself_notes_goes_with_it_to_the_last_word(spool: Spool) -> None:
    """Also where somebody else seems to record still: a segment of which a power cut left zeros, so that nobody knows whose it is."""
    target = MemoryTarget()
    run = killed(spool, points=3)
    other = os.path.join(spool.run(run).writers, ids.to_text(ids.new_id()))
    os.mkdir(other)
    Path(other, "000001.open").write_bytes(bytes(65536))
    assert sync(spool, target).sent_records > 0
    before = dict(target.marks_of)
    assert len(before) == 2
    assert sync(spool, target).sent_records == 0
    assert target.marks_of == before
