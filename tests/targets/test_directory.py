"""The directory target: what every target does, and files that are readable, contained and exact whatever happens to them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from conformance import Conformance, Driven, Recording, check, remarked, sync
from directory_bench import DirectoryBench, jsonl

from simspool.agent.targets.directory import DirectoryTarget
from simspool.agent.targets.directory_names import LONGEST, file_name, file_path
from simspool.agent.targets.directory_threads import Threads
from simspool.agent.targets.port import Unreachable
from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Spool, open_spool

T = TypeVar("T")


class TestDirectory(Conformance):
    """The suite, in JSON lines."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> DirectoryBench:
        return DirectoryBench(tmp_path_factory.mktemp("directory") / "results")


class TestTables(Conformance):
    """The suite, with metrics as tables."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> DirectoryBench:
        return DirectoryBench(tmp_path_factory.mktemp("tables") / "results", "csv")

    # nothing in these depends on the form
    test_killed_at_any_moment_nothing_is_lost_or_sent_twice = None  # type: ignore[assignment]
    test_two_targets_at_once_and_one_added_later = None  # type: ignore[assignment]
    test_a_large_file_arrives_whole = None  # type: ignore[assignment]


@pytest.fixture
def bench(tmp_path: Path) -> DirectoryBench:
    """An empty folder."""
    return DirectoryBench(tmp_path / "results")


def with_target(bench: DirectoryBench, ask: Callable[[DirectoryTarget], Awaitable[T]]) -> T:
    """Return what a connected target answers."""

    async def once() -> T:
        target = DirectoryTarget(bench.settings())
        try:
            await target.connect()
            return await ask(target)
        finally:
            await target.close()

    return asyncio.run(once())


def test_what_is_written_reads_as_the_documents_say(bench: DirectoryBench, spool: Spool) -> None:
    run = Recording.begin(spool, "orbit", folder="/campaign/a b", description="words").say(1)
    run.log({"loss": math.nan, "n": 3, "ok": True}, 7)
    run.save("plots/final.png", b"png").close("failed")
    assert sync(spool, bench.settings()).state == "done"
    folder = bench.folder / "campaign" / "a b" / "orbit"
    said = json.loads((folder / "run.json").read_text())
    assert (said["id"], said["name"], said["status"], said["tags"], said["metadata"]) == (run.id, "orbit", "failed", ["a"], {"alpha": 0.5})
    [point] = jsonl(folder / "metrics.jsonl")
    assert (point["step"], point["values"], point["writer"]) == (7, {"loss": "NaN", "n": 3, "ok": True}, run.writers[0].id_text)
    assert [line["kind"] for line in jsonl(folder / "records.jsonl")] == ["run", "artifact", "close"]
    assert (folder / "artifacts" / "output" / "plots" / "final.png").read_bytes() == b"png"
    assert "metrics.jsonl" in (bench.folder / "README.txt").read_text()


def test_a_table_has_any_name_and_exact_values(tmp_path: Path, spool: Spool) -> None:
    bench = DirectoryBench(tmp_path / "results", "csv")
    run = Recording.begin(spool, "table")
    names = ['with "quotes"', "with, commas", "with\nlines", "with\rreturns", "ünïcode", "=1+1"]
    for step, value in enumerate([0.1, 2**53 - 1, 5e-324, 1e308]):
        run.log(dict.fromkeys(names, value), step)
    run.close()
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run)
    found = with_target(bench, lambda target: target.recount(run.id))
    assert found is not None
    assert dict(found.metrics) == dict.fromkeys(names, 4)


HOSTILE = [
    "../up", "a/../../up", "/etc/passwd", "C:\\x", "\\\\host\\x", "a\nb", "\x1b[31mred", "-rf", "~", "x" * 300, "é" * 200, "e\u0301",
    "\u202egnp", "NUL", "com1.txt", "dot.", "space ", " ", ".", "..", ".hidden", "a//b", "a/./b", "run.json", "/".join("d" * 40),
    "CON/aux", "\ud800", '<>:"|?*', "artifacts", "metrics.jsonl", "up/down", "up",
]  # fmt: skip


def test_no_name_leads_out_of_the_folder(bench: DirectoryBench, spool: Spool, tmp_path: Path) -> None:
    runs = []
    for n, name in enumerate(HOSTILE):
        if "\ud800" in name:
            continue  # no record can hold it
        run = Recording.begin(spool, name, folder=f"/{name}").points(1)
        for m, other in enumerate(name for name in HOSTILE if "\ud800" not in name):
            if m % 7 == n % 7:
                run.save(other, f"{n} {m}".encode())
        runs.append(run.close())
    before = {path for path in tmp_path.rglob("*") if bench.folder not in path.parents}
    report = sync(spool, bench.settings())
    assert (report.state, report.refused) == ("done", 0), report.problems
    outside = {path for path in tmp_path.rglob("*") if bench.folder not in path.parents} - before
    assert [path for path in outside if not path.is_relative_to(spool.path) and not path.is_relative_to(tmp_path / "state")] == []
    for path in bench.folder.rglob("*"):
        raw = os.fsencode(path.name)
        assert len(raw) <= 143
        assert all(32 <= byte != 127 for byte in raw)
        assert not (set(path.name) & set('<>:"\\|?*'))
        assert not path.is_symlink()
    for run in runs:
        check(bench, run)
        found = with_target(bench, lambda target, run=run: target.recount(run.id))  # type: ignore[misc]
        assert found is not None
        assert dict(found.files) == {name: digest for name, (digest, _) in run.files.items()}
    assert remarked(spool, "renamed") > 20


@pytest.mark.parametrize("name", HOSTILE)
def test_names_become_names_of_files(name: str) -> None:
    parts = file_path(name)
    assert parts
    for part in parts:
        assert part not in {"", ".", ".."}
        assert "/" not in part
        assert len(part.encode()) <= LONGEST
        assert file_name(part) == part


def test_runs_and_files_of_one_name_keep_apart(bench: DirectoryBench, spool: Spool) -> None:
    runs = [Recording.begin(spool, "same").points(n + 1).close() for n in range(4)]
    again = Recording.begin(spool, "versions")
    for n in range(3):
        again.save("model.pt", f"version {n}".encode())
    again.save("copy.pt", b"version 1").close()
    assert sync(spool, bench.settings()).state == "done"
    check(bench, *runs)
    folder = bench.run(again.id)
    assert folder is not None
    kept = sorted(path.read_bytes() for path in (folder / "artifacts" / "output").glob("model*.pt"))
    assert kept == [b"version 0", b"version 1", b"version 2"]
    found = with_target(bench, lambda target: target.recount(again.id))
    assert found is not None
    assert (found.files["model.pt"], len(found.files)) == (hashlib.sha256(b"version 2").hexdigest(), 4)


def test_one_content_is_on_the_disk_once_in_a_run(bench: DirectoryBench, spool: Spool) -> None:
    run = Recording.begin(spool, "twins").save("one.bin", b"x" * 100_000)
    assert sync(spool, bench.settings()).state == "done"
    run.save("two.bin", b"x" * 100_000).close()
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run)
    folder = bench.run(run.id)
    assert folder is not None
    one, two = (os.stat(folder / "artifacts" / "output" / name) for name in ("one.bin", "two.bin"))
    assert one.st_ino == two.st_ino


def test_a_torn_write_is_cut_off_and_a_shortened_file_is_filled_again(bench: DirectoryBench, spool: Spool) -> None:
    run = Recording.begin(spool, "torn", writers=2).points(20)
    assert sync(spool, bench.settings()).state == "done"
    folder = bench.run(run.id)
    assert folder is not None
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "val')
    with open(folder / "artifacts.jsonl", "a") as file:
        file.write('{"key": "')
    run.points(20, start=20).save("late.txt", b"late")
    assert sync(spool, bench.settings()).state == "done"
    for kept in jsonl(folder / "metrics.jsonl"):
        assert kept["step"] != 99
    assert [line["name"] for line in jsonl(folder / "artifacts.jsonl")] == ["late.txt"]
    check(bench, run)
    half = (folder / "metrics.jsonl").read_bytes()[:777]
    (folder / "metrics.jsonl").write_bytes(half)
    run.close()
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run)
    assert [path.read_bytes() for path in folder.glob("metrics~damaged-*.jsonl")] == [half]


def test_a_link_in_the_way_is_not_followed(bench: DirectoryBench, spool: Spool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "metrics.jsonl").write_text("precious\n")
    run = Recording.begin(spool, "linked").points(5)
    (bench.folder / "conformance").symlink_to(secret)
    report = sync(spool, bench.settings())
    assert (report.state, int(report.exit_code)) == ("done", 4)
    assert "cannot be written" in " ".join(report.problems.values())
    assert sorted(path.name for path in secret.iterdir()) == ["metrics.jsonl"]
    assert (secret / "metrics.jsonl").read_text() == "precious\n"
    run.close()


def test_two_agents_write_one_run_in_turns(bench: DirectoryBench, spool: Spool, tmp_path: Path) -> None:
    """A spool that was cloned whole with its open run: what is equal is there once, what differs is a conflict and not a mixture."""
    run = Recording.begin(spool, "shared").points(50)
    clone = tmp_path / "clone"
    shutil.copytree(spool.path, clone)
    twin = open_spool(clone)
    settings = bench.settings()
    assert sync(spool, settings).state == "done"
    assert sync(twin, settings).state == "done"
    check(bench, run)
    run.points(50, start=50).close()
    assert sync(spool, settings).state == "done"
    check(bench, run)


def test_two_agents_write_one_run_at_once(bench: DirectoryBench, spool: Spool, tmp_path: Path) -> None:
    runs = [Recording.begin(spool, f"raced {n}", writers=2).points(600).say(5).save("a.txt", b"a" * 1000).close() for n in range(3)]
    clone = tmp_path / "clone"
    shutil.copytree(spool.path, clone)
    racers = [Driven(one, bench.settings()) for one in (spool, open_spool(clone))]
    said = [list(racer.lines()) for racer in racers]
    assert [racer.end() for racer in racers] == [0, 0]
    assert [lines[-1] for lines in said] == ["done done", "done done"]
    check(bench, *runs)


def test_a_full_disk_is_waited_out(spool: Spool, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    try:
        bench = DirectoryBench(disk / "results")
        run = Recording.begin(spool, "too much", writers=2).points(3000).save("large.bin", b"y" * 300_000)
        report = sync(spool, bench.settings(), timeout=1.5)
        assert (report.state, report.files_left) == ("unreachable", 1)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run.close()
        assert sync(spool, bench.settings()).state == "done"
        check(bench, run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_hangs_holds_nothing_else_up() -> None:
    """The event loop goes on; what is asked for next is refused at once, until the first call has come back."""
    release, held = threading.Event(), threading.Event()

    def hang() -> str:
        held.set()
        release.wait(60)
        return "back"

    async def story() -> None:
        threads = Threads("/mnt/far", 0.2)
        with pytest.raises(Unreachable, match="does not answer"):
            await threads.call(hang)
        assert held.is_set()
        with pytest.raises(Unreachable, match="has not answered for"):
            await threads.call(hang)
        release.set()
        await threads.finish()
        assert await threads.call(hang) == "back"

    asyncio.run(story())


def test_a_folder_that_is_not_there_is_a_disk_that_is_not_mounted(tmp_path: Path) -> None:
    target = DirectoryTarget(TargetSettings("far", "directory", str(tmp_path / "none")))
    with pytest.raises(Unreachable, match="is its disk mounted"):
        asyncio.run(target.connect())
    assert not (tmp_path / "none").exists()


def test_a_recount_tells_what_was_changed(bench: DirectoryBench, spool: Spool) -> None:
    run = Recording.begin(spool, "counted", writers=2).points(30).say(4).save("a.txt", b"content").close()
    assert sync(spool, bench.settings()).state == "done"
    found = with_target(bench, lambda target: target.recount(run.id))
    assert found is not None
    assert (dict(found.metrics), found.events, found.status) == ({"loss": 60, "count0": 30, "count1": 30}, 4, "completed")
    assert (found.first["count0"], found.last["count0"]) == ((0, 0.0), (29, 29.0))
    assert dict(found.marks) == {writer.id_text: writer.sequence for writer in run.writers}
    folder = bench.run(run.id)
    assert folder is not None
    path = folder / "artifacts" / "output" / "a.txt"
    path.chmod(0o600)
    path.write_bytes(b"CONTENT")
    found = with_target(bench, lambda target: target.recount(run.id))
    assert found is not None
    assert found.files["a.txt"] == hashlib.sha256(b"CONTENT").hexdigest()
    assert with_target(bench, lambda target: target.recount("0" * 22)) is None
