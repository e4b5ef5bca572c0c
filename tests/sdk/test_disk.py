"""A full or read-only disk: the script's result is its own, True means found, False is counted, one warning says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BODY = """
    import os, sys
    from simspool.sdk import Run
    run = Run(mode="offline")
    kept = {"metrics": 0, "event": 0, "artifact": 0}
    false = 0
    begun = run.init("full")
    open("/tmp/simspool-test-%d" % os.getpid(), "wb").close()
    source = "/tmp/simspool-test-%d" % os.getpid()
    for i in range(int(os.environ["CALLS"])):
        ok = run.log_metrics({"m": float(i), "n": i}, step=i)
        kept["metrics"] += ok
        false += not ok
        if i % 100 == 0:
            ok = run.log_event("e" * 500)
            kept["event"] += ok
            false += not ok
        if i % 5000 == 0:
            with open(source, "wb") as f:
                f.write(os.urandom(300_000))
            ok = run.save_file(source, "output", name=f"f{i}")
            kept["artifact"] += ok
            false += not ok
    closed = run.close()
    os.unlink(source)
    false += not closed
    print(begun, kept["metrics"], kept["event"], kept["artifact"], false, sum(run.drops.values()))
"""


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


mounts = pytest.mark.skipif(not _can_mount(), reason="needs `unshare -Urm`: full and read-only disks are NOT tested here")


@mounts
@pytest.mark.parametrize("size", ["64k", "700k", "3m"])
def test_a_full_disk_counts_what_it_did_not_take(size: str, script: Any, tmp_path: Path, found: Any) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    shell = f'mount -t tmpfs -o size={size} none {disk} && "$@"; rc=$?; cp -a {disk}/. {copy}; exit $rc'
    done = script(BODY, prefix=("unshare", "-Urm", "sh", "-c", shell, "sh"), SIMSPOOL_DIR=str(disk / "spool"), CALLS="60000")
    assert done.returncode == 0, done.stderr
    begun, metrics, events, artifacts, false, drops = done.stdout.split()
    assert done.stderr.count("not recording into") == 1
    assert "SIMSPOOL_DIR" in done.stderr
    assert int(false) > 0
    assert int(drops) >= int(false)
    if size == "64k":
        return
    spool = found(None, copy / "spool")
    assert begun == "True"
    assert len(spool.of("metrics")) == int(metrics)
    assert len(spool.of("event")) == int(events)
    assert len(spool.of("artifact")) == int(artifacts)
    assert sum(spool.drops.values()) == int(drops)


@pytest.mark.parametrize("segments", ["mapped", "file"])
def test_a_file_size_limit_is_a_counted_drop(segments: str, script: Any, found: Any) -> None:
    text = BODY.replace("import os, sys", "import os, sys, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))")
    done = script(text, SIMSPOOL_SEGMENTS=segments, CALLS="20000")
    assert done.returncode == 0, done.stderr
    begun, metrics, events, artifacts, false, drops = done.stdout.split()
    spool = found()
    assert begun == "True"
    assert int(false) == int(drops) == sum(spool.drops.values()) > 0
    assert (len(spool.of("metrics")), len(spool.of("event")), len(spool.of("artifact"))) == (int(metrics), int(events), int(artifacts))


@mounts
@pytest.mark.parametrize("existing", [True, False])
def test_a_read_only_disk_lets_the_run_go_on(existing: bool, script: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if existing:
        from simspool.spool import open_spool

        open_spool(disk / "spool", create=True)
    shell = f'mount --bind {disk} {disk} && mount -o remount,ro,bind {disk} && "$@"'
    done = script(BODY, prefix=("unshare", "-Urm", "sh", "-c", shell, "sh"), SIMSPOOL_DIR=str(disk / "spool"), CALLS="200")
    assert done.returncode == 0, done.stderr
    begun, metrics, events, artifacts, false, drops = done.stdout.split()
    assert (begun, metrics, events, artifacts) == ("False", "0", "0", "0")
    assert int(drops) >= int(false) > 200
    assert done.stderr.count("not recording into") == 1
    assert "Read-only" in done.stderr


@mounts
def test_when_space_comes_back_the_run_is_recorded_from_there_on(script: Any, tmp_path: Path, found: Any) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    shell = f'mount -t tmpfs -o size=1m none {disk} && "$@"; rc=$?; cp -a {disk}/. {copy}; exit $rc'
    done = script(
        """
        import os, time
        from simspool.sdk import Run
        ballast = os.path.dirname(os.environ["SIMSPOOL_DIR"]) + "/ballast"
        with open(ballast, "wb") as f:
            try:
                f.write(bytes(2 << 20))
            except OSError:
                pass
        run = Run(mode="offline")
        print(run.init("late"), run.log_metrics({"a": 1.0}))
        os.unlink(ballast)
        deadline = time.monotonic() + 20
        while not run.log_metrics({"a": 2.0}, step=5) and time.monotonic() < deadline:
            time.sleep(0.1)
        print(run.close())
        """,
        prefix=("unshare", "-Urm", "sh", "-c", shell, "sh"), SIMSPOOL_DIR=str(disk / "spool"),
    )  # fmt: skip
    assert done.stdout == "False False\nTrue\n", done.stderr
    spool = found(None, copy / "spool")
    assert spool.only("run")["name"] == "late"
    assert [m["step"] for m in spool.of("metrics")] == [5]
    assert spool.folder.info()["name"] == "late"
    assert sum(spool.drops.values()) >= 2


@pytest.mark.skipif(os.geteuid() == 0 and not _can_mount(), reason="root may write everywhere")
def test_a_folder_without_permission_lets_the_run_go_on(script: Any, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to drop root's rights")
    done = script(BODY, prefix=prefix, SIMSPOOL_DIR=str(closed / "spool"), CALLS="10")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["False", "0"]
    assert done.stderr.count("not recording into") == 1
