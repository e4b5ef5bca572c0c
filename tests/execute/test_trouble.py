"""The recorder does not hurt the command: full disks, spools that cannot be used, a spool that vanishes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from executing import Place


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


COMMAND = ("sh", "-c", "for n in $(seq 3000); do echo x=$n some words of output to fill the disk; done; echo bad >&2; exit 5")
EXPECTED = "".join(f"x={n} some words of output to fill the disk\n" for n in range(1, 3001)).encode()


def test_a_disk_that_fills_up(place: Place, small: Path) -> None:
    done = place.run("--spool", str(small / "spool"), "--metric", r"x=(?P<x>\d+)", "--output", "*", "--", *COMMAND, code=5)
    assert done.stdout == EXPECTED
    said = done.stderr.decode()
    assert "bad\n" in said
    assert "No space left on device" in said


def test_a_disk_that_is_full_from_the_first_moment(place: Place, small: Path) -> None:
    (small / "fill").write_bytes(b"x" * (256 << 10))
    done = place.run("--spool", str(small / "spool"), "--metric", r"x=(?P<x>\d+)", "--output", "*", "--", *COMMAND, code=5)
    assert done.stdout == EXPECTED
    assert "No space left on device" in done.stderr.decode()


def test_a_disk_that_is_read_only(place: Place, small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    done = place.run("--spool", str(small / "spool"), "--output", "*", "--", *COMMAND, code=5)
    assert done.stdout == EXPECTED
    assert "Read-only file system" in done.stderr.decode()


def test_what_is_no_spool_or_a_newer_one(place: Place, tmp_path: Path) -> None:
    for name, marker, words in (("other", None, "is not a spool"), ("newer", {"format": [9, 0], "id": "0" * 22}, "upgrade simspool")):
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        (folder / "file").write_text("mine")
        if marker is not None:
            (folder / "SPOOL").write_text(json.dumps(marker))
        done = place.run("--spool", str(folder), "--abort-when", "x is not finite", "--", *COMMAND, code=5)
        assert done.stdout == EXPECTED
        assert words in done.stderr.decode()
        assert "nothing is recorded" in done.stderr.decode()
        assert sorted(p.name for p in folder.iterdir()) == (["SPOOL", "file"] if marker else ["file"])


def test_a_spool_that_vanishes_meanwhile(place: Place) -> None:
    done = place.run("--output", "*.out", "--", "sh", "-c", f"rm -rf {place.spool}; echo a > b.out; echo done; exit 5", code=5)
    assert done.stdout == b"done\n"


def test_a_broken_configuration_is_a_mistake_that_is_told_first(place: Place) -> None:
    (place.cwd / "simspool.toml").write_text("[spool\n")
    done = place.run("--", "touch", "begun", code=2)
    assert b"simspool.toml is not valid TOML" in done.stderr
    assert not (place.cwd / "begun").exists()


def test_a_disabled_recorder_only_runs_the_command(place: Place) -> None:
    (place.cwd / "simspool.toml").write_text('[run]\nmode = "disabled"\n')
    done = place.run("--metric", r"x=(?P<x>\d+)", "--", *COMMAND, code=5)
    assert (done.stdout, done.stderr) == (EXPECTED, b"bad\n")
    assert not place.spool.exists()
