"""Over SSH, with a real sshd: the same, and what SSH adds."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from command import Command
from hop import Process, until
from real_server import RealServer
from recorded import add_file, begin, fill, whole
from ssh_server import SshServer

from simspool.spool import Spool


def test_over_ssh_with_the_token_on_the_last_hop(
    origin: Spool, far: Spool, place: Path, server: RealServer, sshd: SshServer, agent: Command, tmp_path: Path
) -> None:
    """Compute node, login node, server: points and files are there once, and acknowledged at the beginning of it."""
    run, writer = begin(origin)
    fill(writer, 200)
    result = tmp_path / "result.bin"
    result.write_bytes(os.urandom(3 << 20))
    add_file(origin, run, writer, result)
    assert writer.close({"status": "completed"})
    log = tmp_path / "receive.log"
    receive = Process(log, "relay", "receive", place, "--spool", far.path, "--every", "0.3")
    with receive, Process(tmp_path / "far.log", "run", "--spool", far.path, env=server.environment):
        [done] = agent.lines(
            "relay", "send", sshd.url(place), *sshd.options, "--spool", origin.path, "--once", "--every", "0.3", "--timeout", "80"
        )
    assert (done["state"], done["records_left"], done["files_left"], done["bundles"]) == ("done", 0, 0, 1)
    assert server.points(run, "loss") == [(n, n / 2) for n in range(200)]
    assert os.listdir(os.path.join(origin.agent, "relay")) == [], "the local copy of the bundle goes"


def test_the_hosts_key_is_always_verified(origin: Spool, place: Path, sshd: SshServer, agent: Command, tmp_path: Path) -> None:
    """Another key, or none known: nothing is sent, whatever ssh_config says."""
    whole(origin)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n")
    sshd.trust("other_key")
    send = ("relay", "send", sshd.url(place), "--ssh-key", sshd.key, "--spool", origin.path, "--once", "--timeout", "30")
    assert agent(*send, "--known-hosts", sshd.known_hosts) == 4
    assert f"the key of 127.0.0.1 is not the one in {sshd.known_hosts}" in agent.err
    sshd.known_hosts.write_text("")
    assert agent(*send, "--known-hosts", sshd.known_hosts) == 4
    assert agent(*send) == 4
    assert f"there is no {tmp_path}/.ssh/known_hosts" in agent.err
    assert os.listdir(place) == []


def test_a_key_that_is_not_let_in(origin: Spool, place: Path, sshd: SshServer, agent: Command) -> None:
    """It is said, and no password is tried; so is a key that others may read."""
    whole(origin)
    send = ("relay", "send", sshd.url(place), "--known-hosts", sshd.known_hosts, "--spool", origin.path, "--once", "--timeout", "30")
    other = sshd.folder / "other_key"
    assert agent(*send, "--ssh-key", other) == 4
    assert f"does not let the key {other} in" in agent.err
    sshd.key.chmod(0o644)
    assert agent(*send, "--ssh-key", sshd.key) == 4
    assert f"others may read the key {sshd.key}" in agent.err
    assert "password" not in (sshd.folder / "log").read_text().lower()


def test_no_password_in_an_address(origin: Spool, agent: Command) -> None:
    """It would be seen in process lists: it is refused, and not repeated."""
    assert agent("relay", "send", "ssh://me:hunter2@host/place", "--spool", origin.path, "--once") == 2
    assert "hunter2" not in agent.err
    assert "a password is never taken" in agent.err


def test_a_folder_that_is_not_there(origin: Spool, place: Path, sshd: SshServer, agent: Command) -> None:
    """It is not made: the message names it."""
    whole(origin)
    wrong = sshd.url(place / "nowhere")
    assert agent("relay", "send", wrong, *sshd.options, "--spool", origin.path, "--once", "--timeout", "30") == 4
    assert f"there is no folder {place / 'nowhere'} on 127.0.0.1" in agent.err


@pytest.mark.timeout(180)
def test_connections_that_are_cut(origin: Spool, far: Spool, place: Path, sshd: SshServer, agent: Command, tmp_path: Path) -> None:
    """In the middle of a put, again and again: it goes on where it was, and what arrives is right."""
    run, writer = begin(origin)
    fill(writer, 50)
    files = []
    for n in range(3):
        path = tmp_path / f"file-{n}"
        path.write_bytes(os.urandom(40 << 20))
        files.append(add_file(origin, run, writer, path))
    assert writer.close({"status": "completed"})
    cuts, over = [0], threading.Event()

    def cut() -> None:
        seen = 0
        while not over.wait(0.02):
            growing = sum(p.stat().st_size for p in (place / "in").glob(".*.part/volume-*")) if (place / "in").is_dir() else 0
            if growing > seen and cuts[0] < 4 and sshd.cut():
                cuts[0] += 1
                seen = growing + (8 << 20)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        with Process(tmp_path / "receive.log", "relay", "receive", place, "--spool", far.path, "--every", "0.3"):
            [done] = agent.lines(
                "relay", "send", sshd.url(place), *sshd.options, "--spool", origin.path, "--once", "--custody", "--every", "0.3",
                "--timeout", "120", "--bundle-size", "1 GB",
            )  # fmt: skip
            until(lambda: sorted(os.listdir(far.run(run).blobs)) == sorted(files), "the files are there")
    finally:
        over.set()
        cutter.join()
    assert done["state"] == "custody"
    assert cuts[0] >= 2, "nothing was cut"
    assert os.listdir(place / "refused") == [], "what was put together of pieces was right"
