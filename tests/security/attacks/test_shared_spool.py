"""A9 to A13: other users' folders, segments and datagrams; modes; forged sequences."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_server import RealServer, agent
from recorded import begin, fill, whole

from simspool.sdk.listener import Listener
from simspool.spool import InvalidSpool, Kind, Spool, open_spool


@pytest.fixture
def open_to_all(tmp_path: Path, other: int) -> Path:
    """A folder into which the other user may go, and in which it may write."""
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o1777)
    return place


def test_a09_a_spool_that_another_user_made_first(open_to_all: Path, as_other: Callable[..., int]) -> None:
    path = open_to_all / "spool"
    assert as_other(lambda: open_spool(path, create=True) and 0) == 0
    for create in (False, True):
        with pytest.raises(InvalidSpool, match="belongs to uid"):
            open_spool(path, create=create)
    path = open_to_all / "empty"
    assert as_other(lambda: os.mkdir(path, 0o777)) == 0
    with pytest.raises(InvalidSpool, match="belongs to uid"):
        open_spool(path, create=True)
    assert not any(path.iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o702])
def test_a10_a_spool_that_anybody_may_write_to(tmp_path: Path, mode: int) -> None:
    made = open_spool(tmp_path / "spool", create=True)
    os.chmod(made.path, mode)
    with pytest.raises(InvalidSpool, match="chmod o-w"):
        open_spool(made.path)
    done = agent("--spool", made.path, "status")
    assert done.returncode != 0 or "chmod" in done.stderr


def test_a11_another_users_writer_is_not_one_of_the_runs(spool: Spool, open_to_all: Path, as_other: Callable[..., int]) -> None:
    """The spool is 0700 for its owner: nobody else gets a segment in, or a datagram heard."""
    run = whole(spool)
    folder = spool.run(run).writers
    assert as_other(lambda: os.listdir(folder)) == 99
    assert as_other(lambda: os.mkdir(os.path.join(folder, "x"))) == 99


def test_a11_a_datagram_of_another_user_is_not_heard(open_to_all: Path, as_other: Callable[..., int]) -> None:
    heard: list[bytes] = []
    path = str(open_to_all / "w")
    listener = Listener(path, heard.append)
    assert listener.start()
    os.chmod(path, 0o777)  # even if somebody opened it

    def send() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(b"from another user", path)

    assert as_other(send) == 0
    send_own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    send_own.sendto(b"from us", path)
    send_own.close()
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    listener.stop()
    assert heard == [b"from us"]


def test_a12_what_a_run_leaves_is_private_under_any_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for mask in ("000", "077"):
        place = tmp_path / mask
        place.mkdir()
        before = os.umask(int(mask, 8))
        try:
            env = {"SIMSPOOL_DIR": str(place / "spool"), "SIMSPOOL_STATE": str(place / "state")}
            done = agent("exec", "--output", "*.txt", "--", "sh", "-c", "echo hello; echo x > a.txt", env=env)
            assert done.returncode == 0, done.stderr
            assert agent("status", env=env).returncode == 0
        finally:
            os.umask(before)
        spool = open_spool(place / "spool")
        for path in [Path(spool.path), *Path(spool.path).rglob("*"), *(place / "state").rglob("*")]:
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert not mode & 0o077 or not Path(spool.path).stat().st_mode & 0o077, (path, oct(mode))
        assert stat.S_IMODE(Path(spool.path).stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "state").stat().st_mode) & 0o077 == 0


def test_a13_a_forged_sequence_skips_nothing_in_silence(spool: Spool, server: RealServer) -> None:
    """A writer that jumps ahead: the server has a declared gap and what follows, and another writer's mark does not move."""
    run, writer = begin(spool)
    fill(writer, 5)
    honest = whole(spool, "honest")
    writer._stream.seq = 1 << 40  # as a hostile program would
    assert writer.record(Kind.EVENT, {"message": "from far ahead"})
    assert writer.close({"status": "completed"})
    done = agent("sync", "--json", "--timeout", "60", env=server.environment)
    assert done.returncode in {0, 8}, done.stdout + done.stderr
    assert len(server.points(honest, "loss")) == 100
    assert len(server.points(run, "loss")) == 5
    assert "from far ahead" in server.events(run)
    gaps = server.get(f"/simspool/v1/runs/{run}/gaps")["gaps"]
    assert [(gap["first"], gap["reason"]) for gap in gaps] == [(7, "lost")], "what is not there is said"
    assert gaps[0]["last"] > 1 << 39
