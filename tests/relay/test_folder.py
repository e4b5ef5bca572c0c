"""Over a shared folder: what is recorded here is sent, taken, drained there, and acknowledged here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from command import Command
from hop import Process, until
from real_server import RealServer
from real_server import agent as run_agent
from recorded import add_file, begin, fill, whole
from sides import Side

from simspool.agent.carry import carried
from simspool.spool import Kind, Spool


def receive(far: Spool, place: Path, **env: str) -> Process:
    return Process(place.parent / "receive.log", "relay", "receive", place, "--spool", far.path, "--every", "0.2", env=env)


def test_there_and_back_with_real_agents(
    origin: Spool, far: Spool, place: Path, server: RealServer, agent: Command, tmp_path: Path
) -> None:
    """Points and files are on the server once; the origin knows it, may prune, and has seen no token."""
    ended = whole(origin, "ended", points=300)
    live, writer = begin(origin, "live")
    fill(writer, 50)
    result = tmp_path / "result.bin"
    result.write_bytes(os.urandom(1 << 20))
    add_file(origin, live, writer, result)
    with receive(far, place), Process(tmp_path / "far.log", "run", "--spool", far.path, env=server.environment):
        [done] = agent.lines("relay", "send", place, "--spool", origin.path, "--once", "--every", "0.3", "--timeout", "60")
        assert (done["state"], done["records_left"], done["files_left"]) == ("done", 0, 0)
        assert "added the target 'bundle'" in agent.err
        assert server.points(ended, "loss") == [(n, n / 2) for n in range(300)]
        fill(writer, 50, start=50)
        assert writer.close({"status": "completed"})
        [done] = agent.lines("relay", "send", place, "--spool", origin.path, "--once", "--every", "0.3", "--timeout", "60")
        assert done["bytes"] < 100_000, "only what is new travels"
        assert server.points(live, "loss") == [(n, n / 2) for n in range(100)]
    assert agent("status", "--spool", origin.path) == 0
    assert " 0 waiting" in agent.out
    assert os.listdir(place / "in") == [".receiver.lock"]
    assert os.listdir(place / "refused") == []
    token = server.token.encode()
    for path in (p for folder in (origin.path, place, tmp_path / "state") for p in Path(folder).rglob("*") if p.is_file()):
        assert token not in path.read_bytes(), path
    with Side(Path(origin.path)) as side:
        assert set(side.prune("bundle:bundle")) == {ended, live}
    assert origin.run_ids() == []
    assert agent("verify", "--all", "--spool", far.path, "--url", server.url, "--token-file", server.data / "token") == 0, agent.err


def test_agents_do_it_by_themselves(origin: Spool, far: Spool, place: Path, server: RealServer, tmp_path: Path) -> None:
    """`[relay]` in simspool.toml is all that `agent run` needs, on both sides; the status says so."""
    for name, text in (("a", f'send = "{place}"'), ("b", f'receive = ["{place}"]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "simspool.toml").write_text(f"[relay]\n{text}\nevery = 0.3\n")
    run = whole(origin, points=100)
    here = Process(tmp_path / "a.log", "run", "--spool", origin.path, cwd=tmp_path / "a")
    there = Process(tmp_path / "b.log", "run", "--spool", far.path, cwd=tmp_path / "b", env=server.environment)
    with here, there:

        def delivered() -> bool:
            found = json.loads(run_agent("status", "--spool", origin.path, "--json", check=True).stdout)
            assert found["agent"] is None or found["agent"]["relay"] == [f"sends to {place}"]
            return bool(found["records"]["recorded"]) and found["records"]["waiting"] == 0 and found["targets"] != []

        until(delivered, "everything is acknowledged", 60, here.log)
        assert server.points(run, "loss") == [(n, n / 2) for n in range(100)]


def test_an_agent_on_demand_ends_when_the_relay_is_through(
    origin: Spool, far: Spool, place: Path, server: RealServer, tmp_path: Path
) -> None:
    """Not before: nobody else would send what waits."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "simspool.toml").write_text(f'[relay]\nsend = "{place}"\nevery = 0.3\n')
    whole(origin, points=100)
    here = Process(tmp_path / "a.log", "run", "--on-demand", "--idle-end", "1", "--spool", origin.path, cwd=tmp_path / "a").start()
    assert here.process is not None
    until(lambda: list_bundles(place) if (place / "in").is_dir() else False, "the bundle is there", log=here.log)
    with pytest.raises(subprocess.TimeoutExpired):
        here.process.wait(4)
    with receive(far, place), Process(tmp_path / "far.log", "run", "--spool", far.path, env=server.environment):
        assert here.process.wait(60) == 0
    assert "nothing is left to do" in here.log.read_text()
    found = json.loads(run_agent("status", "--spool", origin.path, "--json", check=True).stdout)
    assert found["records"]["waiting"] == 0


def test_three_hops(origin: Spool, far: Spool, place: Path, server: RealServer, agent: Command, tmp_path: Path) -> None:
    """Compute node, login node, a third one that has the token: the receipts come back all the way."""
    run = whole(origin, points=100)
    last, second = tmp_path / "last", tmp_path / "second"
    second.mkdir()
    chain = [
        receive(far, place),
        Process(tmp_path / "send2.log", "relay", "send", second, "--spool", far.path, "--every", "0.3"),
        Process(tmp_path / "receive2.log", "relay", "receive", second, "--spool", last, "--every", "0.3"),
        Process(tmp_path / "last.log", "run", "--spool", last, env=server.environment),
    ]
    for one in chain:
        one.start()
    try:
        [done] = agent.lines("relay", "send", place, "--spool", origin.path, "--once", "--every", "0.3", "--timeout", "80")
        assert done["state"] == "done"
    finally:
        for one in chain:
            one.kill(15)
    assert server.points(run, "loss") == [(n, n / 2) for n in range(100)]


def test_custody_is_not_delivery(origin: Spool, far: Spool, place: Path, agent: Command) -> None:
    """Without a server behind it, the other side has everything, and nothing counts as delivered."""
    whole(origin, points=100)
    with receive(far, place):
        [done] = agent.lines("relay", "send", place, "--spool", origin.path, "--once", "--custody", "--every", "0.3", "--timeout", "60")
        assert (done["state"], done["records_left"]) == ("custody", done["records"])
        [late] = agent.lines("relay", "send", place, "--spool", origin.path, "--once", "--every", "0.3", "--timeout", "2", code=7)
        assert (late["state"], late["bundles"]) == ("timeout", 0)
    assert {carried.read(far.run(run)).via for run in far.run_ids()} == {"relay"}  # type: ignore[union-attr]


def test_an_altered_bundle_is_refused_and_made_again(origin: Spool, far: Spool, place: Path, agent: Command) -> None:
    """It goes to refused/ with the reason; no receipt covers it, so the next one has the same."""
    run = whole(origin, points=100)
    send = ("relay", "send", place, "--spool", origin.path, "--once", "--every", "0.3", "--custody")
    agent.lines(*send, "--timeout", "0", code=7)
    [name] = [n for n in os.listdir(place / "in") if n.endswith(".bundle")]
    volume = place / "in" / name / "volume-0001"
    data = bytearray(volume.read_bytes())
    data[len(data) // 2] ^= 1
    volume.write_bytes(data)
    [took] = agent.lines("relay", "receive", place, "--spool", far.path, "--once", code=8)
    assert (took["bundles"], took["refused"]) == (0, 1)
    assert "is altered" in json.loads((place / "refused" / f"{name}.json").read_text())["reason"]
    assert (place / "refused" / name).is_dir()
    with receive(far, place):
        [done] = agent.lines(*send, "--timeout", "60")
    assert done["state"] == "custody"
    assert far.run(run).writer_ids() == origin.run(run).writer_ids()


def test_a_foreign_run_does_not_hold_up_the_others(origin: Spool, far: Spool, place: Path, tmp_path: Path) -> None:
    """A run that the far spool has recorded itself is refused, and waits; what is new of the others goes on."""
    mine = whole(origin, "mine", points=10)
    stolen = far.run(mine)
    os.makedirs(stolen.writers)
    (Path(stolen.path) / "run.json").write_text("{}")
    (Path(stolen.writers) / "x").mkdir()
    sender = Process(tmp_path / "send.log", "relay", "send", place, "--spool", origin.path, "--every", "0.3")
    first = whole(origin, "first", points=10)
    with receive(far, place), sender:
        until(lambda: whole_there(origin, far, first), "the first one is there", log=sender.log)
        until(lambda: f"run {mine} is not taken by the other side" in sender.log.read_text(), "it is said", log=sender.log)
        second = whole(origin, "second", points=10)
        until(lambda: whole_there(origin, far, second), "the second one is there", log=sender.log)
    assert len([n for n in os.listdir(place / "refused") if n.endswith(".bundle")]) == 1


def test_small_runs_do_not_wait_for_a_large_one(origin: Spool, far: Spool, place: Path, agent: Command) -> None:
    """In bundles of a bounded size, the small ones are all there before the large one is."""
    large, writer = begin(origin, "large")
    text = "x" * 60_000
    for n in range(200):
        assert writer.metrics({"n": n}, step=n)
        assert writer.record(Kind.EVENT, {"message": f"{n} {text}"})
    assert writer.close({"status": "completed"})
    small = [whole(origin, f"small {n}", points=5) for n in range(20)]
    size = sum(p.stat().st_size for p in Path(origin.run(large).writers).rglob("*.seg"))
    bundles = 0
    send = ("relay", "send", place, "--spool", origin.path, "--once", "--timeout", "0", "--custody", "--bundle-size", "1 MB")
    while agent(*send) == 7:
        assert len(list_bundles(place)) == 1
        bundles += 1
        agent.lines("relay", "receive", place, "--spool", far.path, "--once")
        if bundles == 1:
            assert all(whole_there(origin, far, run) for run in small)
            assert not whole_there(origin, far, large)
    assert list_bundles(place) == []
    assert bundles > 1
    assert size > 10 << 20
    assert whole_there(origin, far, large)


def list_bundles(place: Path) -> list[str]:
    return [name for name in os.listdir(place / "in") if name.endswith(".bundle")]


def whole_there(origin: Spool, far: Spool, run: str) -> bool:
    def bytes_of(spool: Spool) -> dict[str, int]:
        return {p.name: p.stat().st_size for p in Path(spool.run(run).writers).rglob("*.seg")}

    return bytes_of(origin) == bytes_of(far)


def test_a_place_that_is_not_there(origin: Spool, tmp_path: Path, agent: Command) -> None:
    """It is never made: it may be a disk that is not mounted."""
    whole(origin)
    assert agent("relay", "send", tmp_path / "nowhere", "--spool", origin.path, "--once", "--timeout", "30") == 3
    assert f"there is no folder {tmp_path / 'nowhere'}" in agent.err
    assert not (tmp_path / "nowhere").exists()
    assert agent("relay", "send", "nowhere", "--spool", origin.path, "--once") == 2
    assert agent("relay", "receive", "ssh://host/x", "--spool", origin.path, "--once") == 2
