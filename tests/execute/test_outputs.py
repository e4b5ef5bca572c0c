"""Output files: found by pattern, saved as they settle and in their last state at the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from executing import Place, until

from simspool.agent.execute.globs import Glob


def names(pattern: str, base: Path, avoid: Path | None = None) -> list[str]:
    found = [os.path.relpath(path, base) for path, _ in Glob(pattern, str(base), str(avoid) if avoid else None).files()]
    assert len(found) == len(set(found))
    return sorted(found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a.h5", "b.txt", ".hidden.h5", "out/a.h5", "out/deep/er/c.h5", "out/deep/d.txt", ".git/e.h5", "sp/runs/f.h5"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "out" / "loop").symlink_to(root)
    (root / "link.h5").symlink_to(root / "a.h5")
    (root / "broken.h5").symlink_to(root / "nothing")
    os.mkfifo(root / "fifo.h5")
    return root


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.h5", ["a.h5", "link.h5"]),
        ("./out/../*.h5", ["a.h5", "link.h5"]),
        ("**/*.h5", ["a.h5", "link.h5", "out/a.h5", "out/deep/er/c.h5"]),
        ("out/**", ["out/a.h5", "out/deep/d.txt", "out/deep/er/c.h5"]),
        ("out", ["out/a.h5", "out/deep/d.txt", "out/deep/er/c.h5"]),
        ("**/deep/**/*.h5", ["out/deep/er/c.h5"]),
        ("**/**/?.[th]*", ["a.h5", "b.txt", "out/a.h5", "out/deep/d.txt", "out/deep/er/c.h5"]),
        ("*/*.h5", ["out/a.h5"]),
        (".*.h5", [".hidden.h5"]),
        ("b.txt", ["b.txt"]),
        ("nothing/*", []),
        ("fifo.h5", []),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(pattern, tree, tree / "sp") == expected
    assert names(str(tree / pattern), tree, tree / "sp") == expected


def test_a_file_is_saved_when_it_settles_and_again_when_it_changes(place: Place) -> None:
    (place.cwd / "old.out").write_text("before")
    write = "mkdir d; echo 1 > d/a.out; read x; echo 2 >> d/a.out; echo 3 > 'b c+d.out'"
    process = place.start("--output", "**/*.out", "--settle", "0.3", "--", "sh", "-c", write, stdin=subprocess.PIPE)
    assert process.stdin is not None
    run = until(lambda: (place.spool / "runs").exists() and list((place.spool / "runs").iterdir()), "the run")[0]
    until(lambda: list(run.glob("blobs/*")), "the first state")
    assert place.artifact("d/a.out") == b"1\n"
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(40) == 0
    assert place.artifact("d/a.out") == b"1\n2\n"
    assert sorted(body["name"] for body in place.bodies("artifact")) == ["b c_d.out", "d/a.out", "d/a.out"]


def test_inputs_are_saved_as_they_were_when_it_began(place: Place) -> None:
    (place.cwd / "input.nml").write_text("first")
    (place.cwd / "main.f90").write_text("code")
    place.run("--input", "input.nml", "--code", "main.f90", "--output", "*", "--", "sh", "-c", "echo second > input.nml")
    saved = [(body["name"], body["category"]) for body in place.bodies("artifact")]
    assert saved == [("input.nml", "input"), ("main.f90", "code"), ("input.nml", "output")]


def test_a_signal_while_the_last_files_are_saved_leaves_out_the_rest(place: Place) -> None:
    make = "mkdir many; for n in $(seq 1500); do echo $n > many/$n.dat; done; echo made"
    process = place.start("--output", "many/*.dat", "--settle", "1000", "--", "sh", "-c", make)
    assert process.stdout is not None
    assert process.stdout.readline() == b"made\n"
    until(lambda: list(place.spool.glob("runs/*/blobs/*")), "the first file")
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    assert place.show()["status"] == "completed"
    assert 0 < len(place.bodies("artifact")) < 1500
    assert any("SIGTERM came while the last files were being saved" in event for event in place.events())


def test_many_files_and_what_vanishes(place: Place) -> None:
    make = "mkdir many; for n in $(seq 300); do echo $n > many/$n.dat; done; (sleep 0; rm many/1*.dat) & wait"
    place.run("--output", "many/*.dat", "--settle", "0", "--", "sh", "-c", make)
    saved = {body["name"] for body in place.bodies("artifact")}
    assert {f"many/{n}.dat" for n in range(2, 301) if not str(n).startswith("1")} <= saved
    assert not any(place.bodies("close")[0]["drops"].values())


def test_a_large_file_is_saved_with_flat_memory_and_the_spool_never_is(place: Place) -> None:
    inside = place.cwd / "spool"
    command = "truncate -s 300M big.bin; echo end >> big.bin; read x; grep VmHWM /proc/$PPID/status > hwm"
    options = ("--spool", str(inside), "--output", "**/*", "--settle", "0.2")
    process = place.start(*options, "--", "sh", "-c", command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    until(lambda: [p for p in inside.glob("runs/*/blobs/[0-9a-f]*") if p.stat().st_size > 300 << 20], "the large file", 60)
    process.stdin.close()
    process.wait(60)
    peak = int(re.findall(r"\d+", (place.cwd / "hwm").read_text())[0])
    assert peak < 50_000, f"{peak} kB"
    (run,) = (inside / "runs").iterdir()
    sizes = sorted(p.stat().st_size for p in run.glob("blobs/*"))
    assert sum(size > 1 << 20 for size in sizes) == 1
