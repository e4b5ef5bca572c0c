"""A disk that is full to the last byte: shedding has room of its own to be journaled in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="needs `unshare -Urm`: a disk that is full while something is shed is NOT tested here")
def test_what_is_shed_is_journaled_on_a_disk_without_a_free_byte(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    story = Path(__file__).with_name("full_disk_story.py")
    shell = f'mount -t tmpfs -o size=12m none {disk} && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", shell, "sh", sys.executable, str(story), str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "1", "True"], done.stderr
