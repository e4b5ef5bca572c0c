"""F6, F7, F24: every truncation and every bit flip of a small segment, flips between ingest and drain, the zoo."""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from checker import check_drained
from trials import HERE, Context, Part, Stage, part

from simspool.spool import ids, layout, segment_header
from simspool.spool.frames import MetricBatch
from simspool.spool.reader import Tail

sys.path.insert(0, str(HERE.parent / "spool"))  # specimens and the zoo lie with the format's tests
RUN = bytes(range(16))


def _damage() -> ModuleType:
    import test_damage

    return test_damage


def _read(folder: str) -> tuple[dict[int, Any], int]:
    """Return (records by sequence, pieces of damage)."""
    found: dict[int, Any] = {}
    damage = 0
    with Tail(folder, ids.to_text(RUN)) as tail:
        for chunk in tail.read(dead=True):
            damage += len(chunk.damage)
            for item in chunk.items:
                if isinstance(item, MetricBatch):
                    found.update({row[1]: row[5:-1] for row in item.rows})
                else:
                    found[item.seq] = item.body
    return found, damage


def _specimens(c: Context) -> list[tuple[str, str, bytes, list[tuple[int, int, int]], bool]]:
    made = []
    for mapped in (True, False):
        for sealed in (True, False):
            path, data, spans = _damage().specimen(c.room(), mapped=mapped, sealed=sealed)
            made.append((f"{'mapped' if mapped else 'write(2)'} {'sealed' if sealed else 'open'}", path, data, spans, sealed))
    return made


@part("F6", "a segment cut at every byte, the rest gone, zeros or old bytes")
def truncations(c: Context, out: Part) -> None:
    choice = c.random("cuts")
    for label, path, data, spans, sealed in _specimens(c):
        Path(path).write_bytes(data)
        whole, _ = _read(os.path.dirname(path))
        for at in range(len(data)) if c.scale != "sample" else choice.sample(range(len(data)), 40):
            for pad in ("", "zeros", "old bytes"):
                rest = {"": b"", "zeros": bytes(4096), "old bytes": choice.randbytes(512)}[pad]
                Path(path).write_bytes(data[:at] + rest)
                found, damage = _read(os.path.dirname(path))
                expected = {s: whole[s] for start, end, s in spans if s and end <= at}
                wrong = [] if found == expected else [f"I1: {sorted(found)} instead of {sorted(expected)}"]
                torn = any(start < at < end for start, end, _ in spans)
                if (torn or sealed) and not damage:
                    wrong.append("I4: nothing is reported")
                out.tried(wrong, f"{label}, byte {at}, {pad or 'gone'}")


@part("F7", "every bit of a segment flipped")
def flips(c: Context, out: Part) -> None:
    choice = c.random("flips")
    for label, path, data, spans, _ in _specimens(c):
        Path(path).write_bytes(data)
        whole, _none = _read(os.path.dirname(path))
        with open(path, "r+b", buffering=0) as f:
            for at in range(len(data)) if c.scale != "sample" else choice.sample(range(len(data)), 40):
                hit = next((s for start, end, s in spans if start <= at < end), 0)
                for bit in range(8):
                    os.pwrite(f.fileno(), bytes((data[at] ^ 1 << bit,)), at)
                    found, damage = _read(os.path.dirname(path))
                    wrong = [] if damage else ["I4: the flip is not noticed"]
                    if found != {s: v for s, v in whole.items() if s != hit}:
                        wrong.append(f"I1: {sorted(found)} is left when record {hit} was hit")
                    out.tried(wrong, f"{label}, byte {at}, bit {bit}")
                os.pwrite(f.fileno(), data[at : at + 1], at)


@part("F7", "bits flipped in a real spool, before and after it was taken in; blobs too")
def flips_drained(c: Context, out: Part) -> None:
    """What is good arrives, what was hit is declared or waits, and nothing that is wrong ever arrives."""
    choice = c.random("real flips")
    for _ in range(c.pick(1, 6, 60)):
        with Stage(c.room(), c.server) as stage:
            stage.record(calls=60, files=1)
            late = choice.random() < 0.5
            if late:  # taken in with no server that answers; then hit
                stage.sync(env={"SIMSPOOL_URL": "http://127.0.0.1:9"})
            run = stage.scripts[0].said.run
            files = [p for p in (stage.spool / "runs" / run).rglob("*") if p.suffix in {".seg", ".open"} or len(p.name) == 64]
            path = choice.choice(files)
            path.chmod(0o600)
            with path.open("r+b") as f:
                size = path.stat().st_size
                at = choice.randrange(segment_header.SIZE if path.suffix else 0, size)
                f.seek(at)
                byte = f.read(1)[0]
                f.seek(at)
                f.write(bytes((byte ^ 1 << choice.randrange(8),)))
            stage.sync()
            out.tried(_only_right(stage, run), f"{path.suffix or 'blob'} byte {at} of {size}, {'after' if late else 'before'} the ingest")


def _only_right(stage: Stage, run: str) -> list[str]:
    server, said = stage.server, stage.scripts[0].said
    assert server is not None
    points = server.points(run, "n") if server.get(f"/runs/{run}") else []
    values = {int(v) for _, v in points}
    wrong = [v for v in values if str(v) not in said.yes["metrics"]]
    out = [f"I2: the server has points that nobody recorded: {wrong[:3]}"] if wrong else []
    if len(values) != len(points):
        out.append("I2: points twice")
    missing = len(said.yes["metrics"]) - len(values)
    gaps = stage.sync().report
    if missing > 1 and not (gaps.get("records_left") or gaps.get("refused") or gaps.get("problems")):
        out.append(f"I1: {missing} points are lost to one flipped bit, and nothing waits")
    return out


@part("F24", "the zoo: a specimen of every disease")
def zoo(c: Context, out: Part) -> None:
    import test_zoo

    for cage in test_zoo.CAGES:
        expected = json.loads((test_zoo.ZOO / cage / "expected.json").read_text())
        before = test_zoo.contents(test_zoo.ZOO / cage / "spool")
        for dead in (True, False):
            found = test_zoo.findings(test_zoo.ZOO / cage / "spool", dead=dead)
            out.tried([] if found == expected["dead" if dead else "live"] else [f"I1: {cage} is read otherwise than expected"])
        if test_zoo.contents(test_zoo.ZOO / cage / "spool") != before:
            out.violations.append(f"I7: {cage} was changed by reading it")


@part("F24", "a spool of a newer major version is left untouched")
def newer(c: Context, out: Part) -> None:
    for what in ("spool", "segment"):
        with Stage(c.room(), c.server) as stage:
            stage.record(calls=30)
            if what == "spool":
                marker = stage.spool / "SPOOL"
                marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format": [99, 0]}))
            else:
                run = stage.spool / "runs" / stage.scripts[0].said.run
                [writer] = layout.list_writers(str(run / "w"))
                path = Path(layout.segments(str(run / "w" / writer))[0].path)
                data = bytearray(path.read_bytes())
                data[8] = 2  # the major version
                data[252:256] = zlib.crc32(data[:252]).to_bytes(4, "little")
                path.write_bytes(data)
            before = {p: p.read_bytes() for p in (stage.spool / "runs").rglob("*") if p.is_file()}
            done = stage.sync()
            wrong = [] if done.code == 6 else [f"I7: the sync ended with {done.code}, not with a newer format's: {done.errors[-200:]}"]
            if {p: p.read_bytes() for p in (stage.spool / "runs").rglob("*") if p.is_file()} != before:
                wrong.append("I7: a newer spool was changed")
            out.tried(wrong, what)


@part("F1", "undisturbed: the checker itself finds nothing where nothing happened")
def undisturbed(c: Context, out: Part) -> None:
    with Stage(c.room(), c.server) as stage:
        stage.record(2, calls=100, files=2, threads=2, forks=1)
        out.tried(check_drained(stage))
