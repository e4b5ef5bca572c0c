"""The drain: everything arrives exactly once, whatever the way and the server do."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faulty_proxy import FAULTS, FaultyProxy, seeded
from in_process import drains_of, the_drain
from real_server import RealServer, agent
from recorded import add_file, begin, fill, killed, whole

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain import loop as drain_loop
from simspool.agent.drain.backoff import CAP, Backoff
from simspool.agent.sync import Selection
from simspool.spool import Spool


def expected(points: int) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in range(points)]


def sync(spool: Spool, server: RealServer, url: str | None = None, **options: object):
    async def once():
        config = AgentConfig(spool, url or server.url, server.token)
        async with Agent(config, backoff=Backoff(lambda: 0.002)) as found:
            return await found.sync(**{"timeout": 60.0, **options})

    return asyncio.run(once())


def test_what_is_drained_is_counted_on_the_server_and_a_second_sync_sends_nothing(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some bytes\n" * 1000)
    run, writer = begin(spool, "first", metadata={"alpha": 0.5}, tags=["x"])
    fill(writer, 3000, events=7)
    add_file(spool, run, writer, tmp_path / "a.txt")
    writer.close({"status": "completed"})
    lost = killed(spool)
    report = sync(spool, server)
    assert (report.state, report.records_left, report.files_left, report.refused) == ("done", 0, 0, 0)
    assert server.points(run, "loss") == expected(3000)
    assert server.points(run, "count") == [(s, s) for s in range(3000)]
    assert server.events(run) == [f"event {n}" for n in range(7)]
    shown = server.get(f"/runs/{run}")
    assert (shown["status"], shown["name"], shown["metadata"]["alpha"], shown["tags"]) == ("completed", "first", 0.5, ["x"])
    assert server.get(f"/runs/{lost}")["status"] == "lost"
    [artifact] = server.get(f"/runs/{run}/artifacts")
    assert (artifact["name"], artifact["size"]) == ("a.txt", 11000)
    again = sync(spool, server)
    assert (again.state, again.sent_records, again.sent_bytes, again.sent_files) == ("done", 0, 0, 0)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "ok"])
def test_each_fault_of_the_way_leaves_every_count_exact(spool: Spool, server: RealServer, tmp_path: Path, fault: str) -> None:
    (tmp_path / "f.bin").write_bytes(os.urandom(100_000))
    run, writer = begin(spool)
    fill(writer, 2000, events=5)
    add_file(spool, run, writer, tmp_path / "f.bin")
    writer.close({"status": "completed"})
    broken: dict[str, int] = {}

    def choose(method: str, path: str, _n: int) -> str:
        kind = f"{method} {path.split('/')[-1] if 'blobs/' not in path or 'missing' in path else 'blob'}"
        broken[kind] = broken.get(kind, 0) + 1
        return fault if broken[kind] <= 2 else "ok"

    with FaultyProxy(server.url, choose) as proxy:
        report = sync(spool, server, proxy.url)
    assert report.state == "done", report
    assert {f for _, _, f in proxy.log} == {fault, "ok"}
    assert server.points(run, "loss") == expected(2000)
    assert server.events(run) == [f"event {n}" for n in range(5)]
    assert server.get(f"/runs/{run}")["status"] == "completed"


def test_a_schedule_of_random_faults_leaves_every_count_exact(spool: Spool, server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simspool.agent.drain.batch.REQUEST_BYTES", 64 << 10)
    big, writer = begin(spool, "big")
    runs: list[str] = []
    with FaultyProxy(server.url, seeded(11, 0.5)) as proxy:
        for part in range(5):
            runs += [whole(spool, f"r{n}", points=200 + n, events=n) for n in range(len(runs), len(runs) + 4)]
            fill(writer, 4000, start=4000 * part)
            if part == 4:
                writer.close({"status": "completed"})
            report = sync(spool, server, proxy.url)
            assert report.state == "done", report
    assert sum(1 for *_, fault in proxy.log if fault != "ok") > 5
    for n, run in enumerate(runs):
        assert server.points(run, "loss") == expected(200 + n)
        assert len(server.events(run)) == n
    assert server.points(big, "loss") == expected(20_000)


def test_a_server_that_is_killed_in_the_middle_has_everything_once_at_the_end(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simspool.agent.drain.batch.REQUEST_BYTES", 128 << 10)
    run, writer = begin(spool)
    fill(writer, 60_000)
    writer.close({"status": "completed"})
    stop = threading.Event()
    with RealServer(tmp_path / "killed") as own:
        kills = 0

        def killer() -> None:
            nonlocal kills
            rng = random.Random(5)
            while not stop.wait(rng.uniform(0.05, 0.3)) and kills < 4:
                own.kill(signal.SIGKILL)
                kills += 1
                own.start()

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            report = sync(spool, own)
        finally:
            stop.set()
            thread.join()
        assert kills > 0
        assert report.state == "done", report
        assert own.points(run, "loss") == expected(60_000)


def test_an_agent_that_is_killed_at_random_moments_sends_nothing_twice(spool: Spool, server: RealServer) -> None:
    runs = [whole(spool, f"k{n}", points=3000) for n in range(6)]
    env = {**os.environ, **server.environment}
    rng = random.Random(3)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "sync"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.2, 0.6))
        process.kill()
        process.wait()
    agent("sync", env=server.environment, check=True)
    for run in runs:
        assert server.points(run, "loss") == expected(3000)


def test_a_deleted_catalog_resumes_with_no_second_effect_and_sends_no_file_again(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(os.urandom(50_000))
    run, writer = begin(spool)
    fill(writer, 1000)
    add_file(spool, run, writer, tmp_path / "f.bin")
    writer.close({"status": "completed"})
    assert sync(spool, server).state == "done"
    os.unlink(catalog_path(spool))
    second, writer = begin(spool, "second")
    add_file(spool, second, writer, tmp_path / "f.bin", "same.bin")
    writer.close({"status": "completed"})
    report = sync(spool, server)
    assert (report.state, report.sent_files, report.sent_file_bytes) == ("done", 0, 0)
    assert report.sent_records == 3
    assert server.points(run, "loss") == expected(1000)
    assert [a["name"] for a in server.get(f"/runs/{second}/artifacts")] == ["same.bin"]


def test_a_file_saved_again_in_another_spool_is_registered_and_not_sent_again(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    from simspool.spool import open_spool

    (tmp_path / "f.bin").write_bytes(os.urandom(50_000))
    run, writer = begin(spool)
    add_file(spool, run, writer, tmp_path / "f.bin")
    writer.close({"status": "completed"})
    assert sync(spool, server).sent_files == 1
    other = open_spool(tmp_path / "other", create=True)
    second, writer = begin(other)
    add_file(other, second, writer, tmp_path / "f.bin")
    writer.close({"status": "completed"})
    report = sync(other, server)
    assert (report.state, report.sent_files, report.known_files) == ("done", 0, 1)


def test_a_server_restored_from_an_old_copy_asks_again_and_gets_what_is_still_here(spool: Spool, tmp_path: Path) -> None:
    import shutil

    run, writer = begin(spool)
    fill(writer, 500)
    with RealServer(tmp_path / "s") as own:
        assert sync(spool, own).state == "done"
        own.kill(signal.SIGTERM)
        shutil.copytree(own.data, tmp_path / "backup")
        own.start()
        fill(writer, 500, start=500)
        assert sync(spool, own).state == "done"
        own.kill(signal.SIGTERM)
        shutil.rmtree(own.data)
        shutil.copytree(tmp_path / "backup", own.data)
        own.start()
        fill(writer, 10, start=1000)
        writer.close({"status": "completed"})
        assert sync(spool, own).state == "done"
        assert own.points(run, "loss") == expected(1010)


def test_a_cloned_writer_is_blocked_and_the_others_go_on(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    import shutil

    from simspool.spool import open_spool

    run, writer = begin(spool)
    fill(writer, 10)
    writer.sync()
    shutil.copytree(spool.path, tmp_path / "clone")
    fill(writer, 10, start=10)
    writer.close({"status": "completed"})
    assert sync(spool, server).state == "done"
    clone = open_spool(tmp_path / "clone")
    # the clone goes on by itself: same writer, same sequences, other records
    [path] = [p for p in Path(clone.run(run).writer(writer.id_text)).iterdir() if p.suffix == ".open"]
    from simspool.spool import frames, segment_header

    seed = segment_header.seed(writer.id, 1)
    data = path.read_bytes()
    end = frames.decode(data, seed, {}, segment_header.SIZE).end
    lives = [frames.encode_json(18, seq, 1, {"message": "another life"}, seed) for seq in range(12, 40)]
    path.write_bytes(data[:end] + b"".join(lives))
    good = whole(clone, "good", points=30)
    report = sync(clone, server)
    assert report.refused > 0
    assert any("conflict" in why for why in report.problems.values())
    assert server.points(good, "loss") == expected(30)
    assert server.points(run, "loss") == expected(20)


def test_a_live_run_is_synced_while_it_is_written(spool: Spool, server: RealServer) -> None:
    run, writer = begin(spool)
    done = 0
    for _ in range(4):
        fill(writer, 250, start=done)
        done += 250
        report = sync(spool, server)
        assert (report.state, report.live_runs) == ("done", 1)
        assert server.points(run, "loss") == expected(done)
        assert server.get(f"/runs/{run}")["status"] == "running"
    writer.close({"status": "completed"})
    sync(spool, server)
    assert server.get(f"/runs/{run}")["status"] == "completed"


def test_only_the_selected_runs_are_sent(spool: Spool, server: RealServer) -> None:
    wanted = whole(spool, "wanted", folder="/a/b", tags=["t"], metadata={"k": 3})
    other = whole(spool, "other", folder="/c")
    for selection in (Selection(runs=("wanted",)), Selection(folder="/a"), Selection(tags=("t",)), Selection(where=(("k", "3"),))):
        report = sync(spool, server, selection=selection)
        assert (report.state, report.runs) == ("done", 1)
    assert server.get(f"/runs/{wanted}")["name"] == "wanted"
    assert server.get(f"/runs/{other}") is None


class HourClock:
    """A clock whose sleeps cost no time: it adds them up, and lets the world do something at a given hour."""

    def __init__(self, at: float, then) -> None:
        self.now, self.at, self.then = 0.0, at, then
        self.done_at: float | None = None

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    async def sleep(self, seconds: float) -> None:
        if seconds > 1e8:
            await asyncio.Event().wait()
        self.now += seconds
        if self.now >= self.at and self.done_at is None:
            self.done_at = self.now
            await asyncio.to_thread(self.then)
        await asyncio.sleep(0.001)


def test_a_server_away_for_an_hour_is_found_again_within_a_minute_and_no_command_is_typed(
    spool: Spool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(drain_loop, "_HEARTBEAT", 1e9)
    run = whole(spool, points=500)
    with RealServer(tmp_path / "s") as own:
        url = own.url
        own.kill()
        clock = HourClock(3600.0, own.start)

        async def day() -> tuple[float, float]:
            config = AgentConfig(spool, url, own.token)
            stop = asyncio.Event()
            async with Agent(config, clock=clock) as found:
                serving = asyncio.create_task(found.serve(stop))
                try:
                    async with asyncio.timeout(60):
                        while not drains_of(found) or the_drain(found).delivered.records == 0:
                            await asyncio.sleep(0.01)
                    first_receipt = clock.now
                finally:
                    stop.set()
                    await serving
            assert clock.done_at is not None
            return clock.done_at, first_receipt

        back, receipt = asyncio.run(day())
        assert back >= 3600.0
        assert receipt - back <= 60.0
        assert own.points(run, "loss") == expected(500)


def test_the_backoff_is_jittered_capped_below_a_minute_and_keeps_the_servers_floor() -> None:
    rng = random.Random(1)
    backoff = Backoff(rng.random)
    waits = [backoff.failed() for _ in range(200)]
    assert all(0 <= w <= CAP < 60 for w in waits)
    assert len(set(waits)) == 200
    assert backoff.failed(120.0) == 120.0
    backoff.succeeded()
    assert backoff.failed() <= 0.5


def test_a_refused_token_says_so_and_is_not_retried_for_ever(spool: Spool, server: RealServer) -> None:
    whole(spool)
    done = agent("sync", env={"SIMSPOOL_URL": server.url, "SIMSPOOL_TOKEN": "wrong"})
    assert done.returncode == 4
    assert "token" in done.stderr
    assert "wrong" not in done.stderr
