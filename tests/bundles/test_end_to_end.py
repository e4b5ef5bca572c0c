"""Over the gap and back: recorded here, carried, drained there, receipted, pruned here; the next bundle has only what is new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from command import Command
from made import apply, create, manifest_of, receipt, sync, take
from real_server import RealServer
from recorded import add_file, begin, fill, killed, whole

from simspool.spool import Spool, layout


def test_over_the_gap_and_back(origin: Spool, far: Spool, server: RealServer, agent: Command, tmp_path: Path, monkeypatch) -> None:
    """Everything is on the server once, the first spool may prune, and verify finds nothing wrong."""
    ended, dead = whole(origin, "ended", points=200), killed(origin, "dead", points=50)
    live, writer = begin(origin, "live")
    fill(writer, 100)
    result = tmp_path / "result.bin"
    result.write_bytes(os.urandom(3 << 20) + b"text " * 300_000)
    add_file(origin, live, writer, result)

    made = create(agent, origin)
    assert (made["runs"], made["blobs"], made["nothing_new"]) == (3, 1, False)
    assert "added the target 'bundle'" in agent.err
    [taken] = take(agent, far, made["path"])
    assert taken["runs"] == 3
    assert taken["new_file_bytes"] == result.stat().st_size
    assert sync(agent, far, server)["state"] == "done"
    assert server.points(live, "loss") == [(n, n / 2) for n in range(100)]
    assert server.points(dead, "loss") == [(n, n / 2) for n in range(50)]

    applied = apply(agent, origin, receipt(agent, far, "--url", server.url))
    assert applied["complete"] == 2
    fill(writer, 100, start=100)
    assert writer.close({"status": "completed"})
    second = create(agent, origin)
    assert second["runs"] == 1
    assert second["blobs"] == 0
    assert second["record_bytes"] < made["record_bytes"] / 2
    assert {m.get("run") for m in manifest_of(second["path"])["members"] if m["kind"] == "run"} == {live}
    take(agent, far, second["path"])
    sync(agent, far, server)
    assert server.points(live, "loss") == [(n, n / 2) for n in range(200)]
    assert apply(agent, origin, receipt(agent, far, "--url", server.url))["complete"] == 3
    assert create(agent, origin)["nothing_new"]
    [found] = agent.lines("status", "--spool", origin.path)
    assert found

    monkeypatch.setenv("SIMSPOOL_GRACE", "0")
    agent("sync", "--spool", origin.path)
    assert agent("verify", "--all", "--spool", far.path, "--url", server.url, "--token-file", tmp_path / "token") == 0, agent.err
    assert {ended, dead, live} == set(far.run_ids())


def test_the_far_spool_gets_the_very_bytes(origin: Spool, far: Spool, agent: Command) -> None:
    """Segments there are segments here."""
    run = whole(origin, points=500)
    take(agent, far, create(agent, origin)["path"])
    there, here = ({p.name: p.read_bytes() for p in Path(s.run(run).writers).rglob("*.seg")} for s in (far, origin))
    assert there == here
    assert there


def test_lost_repeated_and_out_of_order(origin: Spool, far: Spool, server: RealServer, agent: Command) -> None:
    """A bundle may get lost, come twice, or come after a later one."""
    run, writer = begin(origin)
    bundles = []
    for n in range(4):
        fill(writer, 50, start=50 * n)
        bundles.append(create(agent, origin)["path"])
    assert writer.close({"status": "completed"})
    shutil.rmtree(bundles[2])
    [taken] = take(agent, far, bundles[3])
    assert not taken["nothing_new"]
    for old in (bundles[0], bundles[3], bundles[1], bundles[0]):
        [taken] = take(agent, far, old)
        assert taken["nothing_new"]
    assert taken["imported_before"] is not None
    sync(agent, far, server)
    assert server.points(run, "loss") == [(n, n / 2) for n in range(200)]
    assert agent("bundle", "import", "--spool", far.path, bundles[0]) == 0
    assert "nothing new: it was imported on " in agent.out


def test_volumes_of_a_given_size(origin: Spool, far: Spool, agent: Command, tmp_path: Path) -> None:
    """A file larger than a volume lies in several; a missing volume is named, and brought later it completes the import."""
    run, writer = begin(origin)
    fill(writer, 100)
    files = []
    for n in range(3):
        path = tmp_path / f"file-{n}"
        path.write_bytes(os.urandom(300_000))
        files.append(add_file(origin, run, writer, path))
    assert writer.close({"status": "completed"})
    made = Path(create(agent, origin, "--volume-size", "100 kB")["path"])
    sizes = [os.path.getsize(made / f"volume-{n + 1:04d}") for n in range(len(manifest_of(made)["volumes"]))]
    assert sizes == manifest_of(made)["volumes"]
    assert set(sizes[:-1]) == {100_000}

    away = tmp_path / "volume-0005"
    shutil.move(made / "volume-0005", away)
    [taken] = take(agent, far, made, code=8)
    assert taken["missing"] == ["volume-0005"]
    assert taken["new_files"] == 2
    assert layout.segments(far.run(run).writer(far.run(run).writer_ids()[0]))
    shutil.move(away, made / "volume-0005")
    [taken] = take(agent, far, made)
    assert (taken["new_files"], taken["missing"]) == (1, [])
    assert sorted(os.listdir(far.run(run).blobs)) == sorted(files)


def test_nothing_is_written_where_nothing_is_new(origin: Spool, agent: Command) -> None:
    """An empty spool makes no bundle."""
    made = create(agent, origin)
    assert made["nothing_new"]
    assert os.listdir(".") == []
    assert agent("bundle", "create", "--spool", origin.path) == 0
    assert "nothing new" in agent.out


def test_a_selection_is_carried(origin: Spool, far: Spool, agent: Command) -> None:
    """By name, folder and tag, as with `agent sync`."""
    first = whole(origin, "first", folder="/a")
    second = whole(origin, "second", folder="/b", tags=["x"])
    assert create(agent, origin, "first")["runs"] == 1
    assert create(agent, origin, "--folder", "/b", "--tag", "x")["runs"] == 1
    take(agent, far, *(p for p in os.listdir(".") if p.endswith(".bundle")))
    assert set(far.run_ids()) == {first, second}
    assert agent("bundle", "create", "--spool", origin.path, "third") == 9
