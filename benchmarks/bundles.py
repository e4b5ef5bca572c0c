"""Bundles: how fast one is made and imported, beside hashing the same bytes, and how small the next one is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from harness import Figure, Plan, agent, median, python, scratch

_RECORD = """
import sys
from dataclasses import replace
from pathlib import Path
from simspool.sdk import Run
with Run(mode="offline") as run:
    run.init("carried")
    for step in range(20_000):
        run.log_metrics({"loss": step / 2, "energy": step * 0.1, "count": step}, step=step)
    for path in sorted(Path(sys.argv[1]).iterdir()):
        run.save_file(str(path), category="output")
print(0)
"""
_BLOCK = 1 << 20


def _make(folder: Path, count: int, *, random: bool) -> None:
    """Write files of 64 MiB: bytes that do not compress, or rows of numbers as simulations print them (about 3 to 1)."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"file-{number}").open("wb") as file:
            for part in range(64):
                if random:
                    file.write(os.urandom(_BLOCK))
                    continue
                base = int.from_bytes(os.urandom(6), "little")
                rows = "".join(f"{part:6d} {i:8d} {(base * (i + 7919)) % 999983:12.6e} {i * 0.001:10.4f}\n" for i in range(23_000))
                file.write(rows.encode().ljust(_BLOCK, b"\n")[:_BLOCK])


def _hash(folder: Path) -> float:
    """Return the seconds that hashing the files takes."""
    began = perf_counter()
    for path in sorted(folder.iterdir()):
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    return perf_counter() - began


def _write(folder: Path, size: int) -> float:
    """Return the seconds that writing so many bytes, and an fsync, take here."""
    block = os.urandom(_BLOCK)
    began = perf_counter()
    with (folder / "raw").open("wb", buffering=0) as file:
        for _ in range(size // _BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    took = perf_counter() - began
    (folder / "raw").unlink()
    return took


def bundles(plan: Plan) -> list[Figure]:
    """`agent bundle create` and `import` of a run with large files, over hashing these files; what a start takes is subtracted.

    In memory, which is what the software takes, and on the disk; also over what it takes to write as many bytes as they write, durably.
    Each is the best of its rounds: where a host lends memory and disk, the others measure how fast it hands them out.
    """
    figures, memory = [], Path("/dev/shm")
    for kind in ("incompressible", "text"):
        if os.path.isdir(memory) and shutil.disk_usage(memory).free > 6 << 30:
            figures += _create_and_import(replace(plan, folder=memory), kind, "in memory")
        figures += _create_and_import(plan, kind, "on the disk")
    return [*figures, _next(plan)]


def _create_and_import(plan: Plan, kind: str, where: str) -> list[Figure]:
    count, rounds = plan.scale(8, 2), plan.scale(7, 2)
    size = count * 64 * _BLOCK
    with scratch(plan, "bundles") as folder:
        _make(folder / "files", count, random=kind == "incompressible")
        python(_RECORD, folder, folder / "files")
        agent(folder, "bundle", "create", "--json")
        starts = _starts(folder)
        hashing, writing, creating, importing = list[float](), list[float](), list[float](), list[float]()
        stored, peaks = 0.0, [0, 0]
        for number in range(rounds):
            plan.say(f"  {kind}, {where}, {size >> 20} MiB, {number + 1} of {rounds}")
            hashing.append(_hash(folder / "files"))
            writing.append(_write(folder, size))
            created = agent(folder, "bundle", "create", "--json")
            writing.append(_write(folder, size))
            far = {"SIMSPOOL_DIR": str(folder / f"far-{number}")}
            imported = agent(folder, "bundle", "import", created.last["path"], "--json", **far)
            if imported.last["new_file_bytes"] != size:
                raise RuntimeError(f"not everything was imported: {imported.out[-1000:]}")
            creating.append(created.seconds - starts[0])
            importing.append(imported.seconds - starts[1])
            peaks = [max(peaks[0], created.peak), max(peaks[1], imported.peak)]
            stored = created.last["stored"] / size
            shutil.rmtree(created.last["path"])
            shutil.rmtree(folder / f"far-{number}")
    bare, disk = min(hashing), min(writing)
    reference = f"sha256 of the same bytes: {size / bare / 1e6:.0f} MB/s; written and fsynced: {size / disk / 1e6:.0f} MB/s"
    figures = []
    for what, took, peak, written in (("create", creating, peaks[0], stored), ("import", importing, peaks[1], 1.0)):
        best = min(took)
        detail = (
            f"{size / best / 1e6:.0f} MB/s, median {size / median(took) / 1e6:.0f}; peak {peak / 1e6:.0f} MB; "
            f"{stored:.2f} of the bytes are carried; "
            f"{max(bare, disk * written) / best:.2f} x of the slower one of hashing, and writing what is written"
        )
        name = f"bundle {what}, {kind}, {where}, over hashing the bytes"
        figures.append(Figure(name, bare / best, "x", 0.5, lower=False, reference=reference, n=f"{rounds}", detail=detail))
    return figures


def _starts(folder: Path) -> tuple[float, float]:
    """Return what both commands take for a run with nothing but a name; the import makes a spool, as it does each time."""
    tiny = {"SIMSPOOL_DIR": str(folder / "tiny")}
    python("from simspool.sdk import Run\nwith Run(mode='offline') as run: run.init('tiny')\nprint(0)", folder, **tiny)
    agent(folder, "bundle", "create", "--json", **tiny)
    creating, importing = list[float](), list[float]()
    for number in range(5):
        created = agent(folder, "bundle", "create", "--json", **tiny)
        far = {"SIMSPOOL_DIR": str(folder / f"far-tiny-{number}")}
        creating.append(created.seconds)
        importing.append(agent(folder, "bundle", "import", created.last["path"], "--json", **far).seconds)
    return min(creating), min(importing)


def _next(plan: Plan) -> Figure:
    """What the bundle after a receipt carries of a run that went on, beside the first one."""
    with scratch(plan, "next") as folder:
        _make(folder / "files", 1, random=True)
        python(_RECORD, folder, folder / "files")
        first = agent(folder, "bundle", "create", "--json").last
        far = {"SIMSPOOL_DIR": str(folder / "far")}
        agent(folder, "bundle", "import", first["path"], **far)
        receipt = json.loads(agent(folder, "bundle", "receipt", "--json", **far).out)["path"]
        agent(folder, "bundle", "apply-receipt", str(folder / receipt))
        (folder / "more").mkdir()
        python(_RECORD, folder, folder / "more")
        second = agent(folder, "bundle", "create", "--json").last
        detail = f"{second['blobs']} files, {second['record_bytes']} bytes of records; the first: {first['blob_bytes'] >> 20} MiB of files"
        return Figure("the next bundle, over the first one", second["stored"] / first["stored"], "x", detail=detail, n="1")
