"""What is odd stops nobody else's abort: bodies of any shape, disks that refuse, runs that are gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.agent.abort.climb import Climb, Step
from simspool.agent.abort.members import Members, named_process
from simspool.agent.abort.steps import Word, as_told, mode_of
from simspool.agent.abort.words import Told
from simspool.agent.live import LiveWriter
from simspool.sdk.config import Graces
from simspool.sdk.process_tree import identify
from simspool.spool import Kind, Spool, atomic, ids
from simspool.spool.control import AbortRequest, decode_request, notice_path, requests
from simspool.spool.frames import Record
from simspool.spool.process import this_host
from simspool.spool.segment_header import SegmentHeader

A = "a" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["id", "state", "mode", "pid", "tree", "of", "graces", "start_ticks", "foreign", "set", "reason", "host", "boot_id"])
KINDS = st.sampled_from([Kind.ABORT, Kind.CONFIG, Kind.PROCESS_START, Kind.PROCESS_EXIT, Kind.ATTACH])
STATES = st.sampled_from(["received", "done", "ignored", "signalled", "killed", "not-ours", "callback-failed", "?"])


def here(**fields: Any) -> SegmentHeader:
    """A header of a process that is gone."""
    host = this_host()
    return SegmentHeader(
        **{
            "writer": bytes(16), "run": bytes(16), "number": 1, "first": 1, "durability": 1, "pid": 2**22 + 5, "start_ticks": 1,
            "anchor_boot": 0, "anchor_wall": 0, "origin_boot": 0, "pid_namespace": host.pid_namespace, "boot_id": host.boot_id, "uid": 0,
            "rank": None, "host": host.name, "machine": host.machine, **fields,
        }
    )  # fmt: skip


@given(body=st.dictionaries(KEYS, JSON, max_size=6), state=STATES, kind=KINDS)
def test_bodies_of_any_shape_break_nothing(body: dict[str, Any], state: str, kind: Kind) -> None:
    told = Told("w")
    told._take(Record(kind, 0, 1, 1, 0, body))
    word = Word("w", 1, {**body, "state": state})
    live = LiveWriter("r", "w", "creator", here(), body, (body,))
    noted: list[str] = []
    climb = Climb(
        AbortRequest(A, "why", writers=("w",)), [live], Graces(0, 0, 0), elapsed=0, floor=0, now=0.0,
        note=lambda state, _: noted.append(state), report=noted.append, look=lambda _: ([], True),
    )  # fmt: skip
    climb.hear(word, 0.0, 0.0)
    climb.resume(word, 0.0, 0.0)
    for now in range(5):
        climb.advance([live], float(now))
    assert climb.step is Step.OVER
    assert named_process(body) is None
    assert as_told(Graces(), body).answer == 5.0
    assert mode_of(body) == "terminate"


def test_the_agent_itself_is_never_in_a_remembered_tree() -> None:
    me = identify(os.getpid())
    members = Members()
    members.remember([[me.pid, me.start_ticks], [1, identify(1).start_ticks], [0, 0], [-5, 1], "x", [1.5, 2], [True, 2]])
    assert members.left() == []
    assert members.ask([me]) == []


def test_a_disk_that_refuses_the_file_does_not_stop_the_abort(world, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = world.victim("silent", children=1)
    aborts = world.begin()
    real, refusing = atomic.write_file, [True]

    def write_file(path: str, data: bytes, *rest: Any, **more: Any) -> bool:
        if refusing[0] and "abort-" in path:
            raise OSError(28, "No space left on device")
        return real(path, data, *rest, **more)

    monkeypatch.setattr(atomic, "write_file", write_file)
    assert aborts.request(victim.run, A, "full", by="alert")
    assert any("cannot be written" in text for text in world.reports)
    world.until(lambda: victim.tree_is_gone)
    refusing[0] = False
    world.until(lambda: requests(world.spool.run(victim.run)))
    assert requests(world.spool.run(victim.run))[0].id == A


def test_a_run_that_is_deleted_meanwhile_stops_nobody_elses_abort(world) -> None:
    gone, other = world.victim("silent"), world.victim("silent")
    aborts = world.begin()
    aborts.request(gone.run, A, "x", by="user")
    os.rename(world.spool.run(gone.run).path, f"{world.spool.path}/elsewhere")
    aborts.request(other.run, "b" * 32, "x", by="user")
    world.until(lambda: other.is_gone)


def test_the_datagram_comes_before_the_file_and_names_its_reader(world, tmp_path: Path) -> None:
    victim = world.victim("silent", mode="ignore")
    folder = world.spool.run(victim.run)
    bell = str(tmp_path / "rt" / "bell")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(notice_path(bell, victim.writer))
        ear.settimeout(10)
        world.begin(bell=bell).request(victim.run, A, "hot", by="alert", alert="too hot")
        request = decode_request(ear.recv(1 << 18))
    assert (request.id, request.reason, request.alert, request.writers) == (A, "hot", "too hot", (victim.writer,))
    assert request == requests(folder)[0]


def test_a_ladder_of_an_empty_spool_does_nothing(spool: Spool, world) -> None:
    aborts = world.begin()
    aborts.look(ids.to_text(ids.new_id()))
    aborts.heard(ids.to_text(ids.new_id()), "w", {"id": A, "state": "received"})
    world.rest(0.5)
    assert not aborts.ladder.is_busy
    assert world.reports == []
