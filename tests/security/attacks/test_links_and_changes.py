"""A2 to A8: links planted by others, files that are swapped, grow or shrink while they are read, and what is no file."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_server import agent
from recorded import begin

from simspool.agent.lines.follow import FollowedFiles
from simspool.spool import InvalidSpool, Spool, UnreadableFile, blobs, links, open_spool

SECRET = b"the secret that only we may read\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of ours that nobody else may read."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def shared(tmp_path: Path, other: int) -> Path:
    """A folder of ours in which another user may write."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/tmp") and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@contextmanager
def swapping(*turns: Callable[[], None]) -> Iterator[None]:
    """Do these in turn, as fast as one can, in another process."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                for turn in turns:
                    turn()
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it still swaps"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def many(least: int, enough: Callable[[], bool]) -> Iterator[int]:
    """Count up to `least`, and on until it is enough, for half a minute at most."""
    deadline = time.monotonic() + 30
    for n in itertools.count():
        if (n >= least and enough()) or time.monotonic() > deadline:
            return
        yield n


def replace(path: Path, make: Callable[[str], object]) -> Callable[[], None]:
    """Return what puts something in the place of a path, at once."""
    spare = f"{path}.{id(make)}"

    def turn() -> None:
        make(spare)
        os.replace(spare, path)

    return turn


def planted(path: Path, target: Path, other: int) -> None:
    """Put another user's link there; it is never ours, not even for a moment."""
    spare = f"{path}.planted"
    os.symlink(target, spare)
    os.lchown(spare, other, other)
    os.rename(spare, path)


def test_a02_a_link_that_another_user_planted_is_not_followed(spool: Spool, shared: Path, secret: Path, other: int) -> None:
    run, writer = begin(spool)
    planted(shared / "result", secret, other)
    with pytest.raises(UnreadableFile, match=f"uid {other}"):
        blobs.put_file(spool, spool.run(run), str(shared / "result"))
    os.symlink(secret, shared / "own")
    assert blobs.put_file(spool, spool.run(run), str(shared / "own")).size == len(SECRET), "our own link is our own wish"
    assert writer.close()


def test_a02_nor_by_directories_globs_and_followed_logs(spool: Spool, shared: Path, secret: Path, other: int) -> None:
    planted(shared / "a.out", secret, other)
    (shared / "b.out").write_text("good\n")
    script = (
        "import sys\nfrom simspool.sdk import Run\nrun = Run(mode='offline'); run.init('x')\n"
        "print(run.save_directory(sys.argv[1], 'output')); run.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(shared)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == "False", "one was left out"
    plant = "ln -s {0} {1}/c.new; chown -h {2} {1}/c.new; ln -s {0} {1}/d.log; chown -h {2} {1}/d.log; echo fine > {1}/e.new; sleep 1"
    command = ["exec", "--output", f"{shared}/*.new", "--follow", f"{shared}/*.log", "--event", "secret", "--", "sh", "-c"]
    made = agent(*command, plant.format(secret, shared, other))
    assert made.returncode == 0, made.stderr
    with_secret = hashlib.sha256(SECRET).hexdigest()
    for run in spool.run_ids():
        assert not os.path.exists(os.path.join(spool.run(run).blobs, with_secret))
        assert SECRET.strip().decode() not in agent("cat", run, "--json").stdout
    kept = {p.read_bytes() for run in spool.run_ids() for p in Path(spool.run(run).blobs).iterdir()}
    assert kept >= {b"good\n", b"fine\n"}


def test_a03_a_file_swapped_for_a_link_at_the_last_moment(spool: Spool, shared: Path, secret: Path, other: int) -> None:
    run, _ = begin(spool)
    path = shared / "result"
    path.write_bytes(b"harmless")
    wrong = hashlib.sha256(SECRET).hexdigest()
    kept = refused = 0
    with swapping(
        replace(path, lambda spare: Path(spare).write_bytes(b"harmless")), replace(path, lambda spare: planted(Path(spare), secret, other)),
        replace(path, os.mkfifo),
    ):  # fmt: skip
        for _ in many(1500, lambda: bool(kept and refused)):
            try:
                kept += blobs.put_file(spool, spool.run(run), str(path)).digest != wrong
            except UnreadableFile:
                refused += 1
    assert not os.path.exists(os.path.join(spool.run(run).blobs, wrong))
    assert kept
    assert refused


def test_a04_a_folder_above_swapped_for_a_link(spool: Spool, shared: Path, secret: Path, other: int) -> None:
    run, _ = begin(spool)
    (shared / "good").mkdir()
    (shared / "good" / "result").write_bytes(b"harmless")
    hidden = secret.parent / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "result").write_bytes(SECRET)
    place = shared / "place"
    (shared / "spare").mkdir()

    def swap() -> None:
        os.rename(shared / "good", place)
        os.rename(place, shared / "good")
        planted(place, hidden, other)
        os.unlink(place)

    outcomes = set()
    with swapping(swap):
        for _ in range(1500):
            try:
                found = blobs.put_file(spool, spool.run(run), str(place / "result"))
                outcomes.add(found.digest)
            except UnreadableFile as error:
                outcomes.add(error.errno)
    assert hashlib.sha256(SECRET).hexdigest() not in outcomes
    assert not os.path.exists(os.path.join(spool.run(run).blobs, hashlib.sha256(SECRET).hexdigest()))


def test_a04_links_are_followed_as_the_kernel_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "file").write_text("x")
    (tmp_path / "d" / "e" / "up").symlink_to("../file")
    (tmp_path / "abs").symlink_to(tmp_path / "d")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("d/file", "d/e/up", "abs/e/up", "./abs/../abs//file", str(tmp_path / "abs" / "e" / ".." / "file")):
        os.close(links.open_file(path))
    for path in ("loop", "d", "nothing", "d/file/more", "", "/", "a\0b"):
        with pytest.raises((OSError, ValueError)):
            links.open_file(path)
    with open("d/file") as held:  # what /proc knows is no link by its text
        os.close(links.open_file(f"/proc/self/fd/{held.fileno()}"))
    before = len(os.listdir("/proc/self/fd"))
    for path in ("d/e/up", "loop", "nothing", "d"):
        try:
            os.close(links.open_file(path))
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_a05_a_hard_link_gives_nobody_more_than_they_could_read(spool: Spool, shared: Path, secret: Path, as_other: Callable[...,
int]) -> None:
    """Only what this user may read is read, under whatever name; what is kept is readable by this user alone."""
    (shared / "ours").hardlink_to(secret)
    run, _ = begin(spool)
    digest = blobs.put_file(spool, spool.run(run), str(shared / "ours")).digest
    kept = os.path.join(spool.run(run).blobs, digest)
    assert os.stat(kept).st_ino != secret.stat().st_ino, "a copy: nobody changes it through the other name"
    assert as_other(lambda: len(Path(kept).read_bytes())) == 99


def test_a06_a_spool_that_is_another_users_link(tmp_path: Path, shared: Path, other: int) -> None:
    planted(shared / "spool", tmp_path, other)
    for create in (False, True):
        with pytest.raises(InvalidSpool, match="link"):
            open_spool(shared / "spool", create=create)
    planted(shared / "nowhere", tmp_path / "not yet", other)
    with pytest.raises((InvalidSpool, OSError)):
        open_spool(shared / "nowhere", create=True)
    assert not (tmp_path / "not yet").exists()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder", "endless"])
def test_a07_what_is_no_file_is_refused_at_once(spool: Spool, tmp_path: Path, kind: str) -> None:
    run, _ = begin(spool)
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero" if kind == "endless" else "/dev/null")
    with pytest.raises(UnreadableFile):
        blobs.put_file(spool, spool.run(run), str(path))
    followed = FollowedFiles([str(path)]) if kind != "folder" else None
    if followed is not None:
        assert list(followed.read()) == []
        followed.close()


def test_a07_files_of_proc_are_kept_as_they_read(spool: Spool) -> None:
    run, _ = begin(spool)
    assert blobs.put_file(spool, spool.run(run), "/proc/self/limits").size > 100


def test_a07_an_inbox_may_hold_anything(spool: Spool, tmp_path: Path) -> None:
    run, writer = begin(spool)
    inbox = Path(spool.run(run).inbox)
    inbox.mkdir()
    os.mkfifo(inbox / "a.jsonl")
    (inbox / "b.jsonl").symlink_to("/dev/zero")
    (inbox / "c.jsonl").mkdir()
    (inbox / "d.jsonl").symlink_to("d.jsonl")
    lines = [{"event": "told"}, {"file": "/dev/zero"}, {"file": str(inbox / "a.jsonl")}, {"event": "told too"}]
    (inbox / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(inbox)
        bound.bind("f.jsonl")
        os.chdir(tmp_path)
        assert writer.close({"status": "completed"})
        done = agent("sync", "--json", timeout=60)
    assert done.returncode >= 0, done.stderr
    told = agent("cat", run, "--json").stdout
    assert '"told"' in told
    assert '"told too"' in told


def test_a08_what_is_kept_is_what_was_hashed(spool: Spool, tmp_path: Path) -> None:
    """A file that grows, shrinks and is replaced all the time: digest and size are those of the copy."""
    run, _ = begin(spool)
    path = tmp_path / "busy"
    path.write_bytes(bytes(300_000))
    choose = random.Random(1)

    def grow() -> None:
        with path.open("ab") as file:
            file.write(choose.randbytes(choose.randint(1, 100_000)))

    def shrink() -> None:
        with path.open("r+b") as file:
            file.truncate(choose.randint(1, 200_000))

    def overwrite() -> None:
        with path.open("r+b") as file:
            file.seek(choose.randint(0, 200_000))
            file.write(choose.randbytes(50_000))

    with swapping(grow, overwrite, shrink, replace(path, lambda spare: Path(spare).write_bytes(choose.randbytes(250_000)))):
        found: list[blobs.Blob] = []
        for _ in many(150, lambda: len({blob.digest for blob in found}) > 20):
            found.append(blobs.put_file(spool, spool.run(run), str(path)))
    assert len({blob.digest for blob in found}) > 20, "it did change"
    for blob in found:
        data = Path(spool.run(run).blobs, blob.digest).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (blob.digest, blob.size)
