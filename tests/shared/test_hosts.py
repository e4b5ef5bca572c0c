"""What a host has once: its agent, its catalog, its sockets; also where the disk has no locks, and in two PID namespaces of one machine."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import begin

from simspool.agent import config as config_module
from simspool.agent import live
from simspool.agent.catalog import Catalog, store
from simspool.agent.config import runtime_folder
from simspool.spool import Locked, Spool
from simspool.spool.lock import SpoolLock
from simspool.spool.process import this_host


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_has_one_agent_a_host_all_the_same(spool: Spool, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(spool.path):
            raise OSError(number, os.strerror(number))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with SpoolLock(spool), pytest.raises(Locked, match=str(os.getpid())):
        SpoolLock(spool).acquire()
    with SpoolLock(spool):
        pass


def test_agents_of_other_namespaces_do_not_meet_at_the_lock(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    here = this_host()
    with SpoolLock(spool):
        monkeypatch.setattr("simspool.spool.agent_address.this_host", lambda: replace(here, pid_namespace=here.pid_namespace + 1))
        with SpoolLock(spool):
            pass


def test_an_agent_of_an_earlier_version_is_not_joined(spool: Spool) -> None:
    os.makedirs(spool.agent)
    fd = os.open(os.path.join(spool.agent, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(Locked):
        SpoolLock(spool).acquire()
    os.close(fd)
    with SpoolLock(spool):
        pass


def test_no_two_processes_have_one_catalog(spool: Spool) -> None:
    first, held = store.claim(spool)
    assert first == store.catalog_path(spool)
    catalog = Catalog(first, claim=held)
    second, none = store.claim(spool)
    assert second != first
    assert os.path.dirname(second) == os.path.dirname(first)
    assert none == -1
    catalog.close()
    again, held = store.claim(spool)
    assert again == first
    os.close(held)


def test_a_state_folder_on_the_network_has_a_catalog_for_each_host(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "is_network", lambda _: True)
    assert os.path.basename(store.catalog_path(spool)) == f"catalog-{this_host().name}.db"


def test_agents_of_two_namespaces_have_sockets_of_their_own(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for namespace in (0xEFFFFFFC, 5, 6):
        monkeypatch.setattr(config_module, "this_host", lambda n=namespace: replace(this_host(), pid_namespace=n))
        found.add(runtime_folder(spool))
    assert len(found) == 3
    assert None not in found


def test_a_writer_of_another_namespace_is_another_hosts(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run, writer = begin(spool)
    folder = spool.run(run).writer(writer.id_text)
    here = this_host()
    assert not live.is_of_another_host(folder)
    monkeypatch.setattr(live, "this_host", lambda: replace(here, pid_namespace=here.pid_namespace + 1))
    assert live.is_of_another_host(folder)
    monkeypatch.setattr(live, "this_host", lambda: replace(here, name="elsewhere"))
    assert live.is_of_another_host(folder)
    assert not live.is_of_another_host(str(Path(folder).parent / ("0" * 22)))  # nothing is known of it yet
    writer.close()
