"""Throws changed specimens at everything that parses bytes of others.

    python tests/security/fuzz.py --parser frames --inputs 1000000 --seed 1
    python tests/security/fuzz.py --parser all --inputs 20000
    python tests/security/fuzz.py --parser inbox --seed 1 --only 4711      # one input: shows it, and what comes of it

The specimens are valid ones, changed in their bytes and in what they say (with checksums made right again, so that what is behind them is
reached). Each input must end in a value or in an error that is documented for its parser, within --patience seconds, and without
the process growing by more than --growth MiB; and one in a thousand must end in a value, else the specimens are no good. A child does the
work under RLIMIT_AS; it notes which input it is at, and the parent kills one that does not get on. Input n of a seed is always the same.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import math
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

PARSERS = ("frames", "segments", "drain-bodies", "server-answers", "inbox", "receipts", "alerts", "config")
_ADDRESS_SPACE = 2 << 30  # bytes
_WARM = 2000  # inputs until the memory is taken as the parser's own
_MOST_FAULTS = 20  # of different kinds, then it ends
_COMMAND = (__file__,)  # what a child is started with
_AT = struct.Struct("<qd")  # the input, and when it was begun


def _subject(parser: str, folder: Path) -> Any:
    import fuzz_bytes
    import fuzz_values

    return {**fuzz_bytes.SUBJECTS, **fuzz_values.SUBJECTS}[parser](folder)


def _random(seed: int, n: int) -> Random:
    return Random(seed << 40 | n)


def _resident() -> int:
    """Return this process's memory now, in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def work(parser: str, seed: int, first: int, inputs: int, seconds: float, note: mmap.mmap, growth: int) -> dict[str, Any]:
    """Try inputs from `first` on; return what came of them."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=os.environ.get("FUZZ_FOLDER")))
    subject = _subject(parser, folder)
    make, run, documented = subject.make, subject.run, subject.documented
    outcomes: Counter[str] = Counter()
    values = 0
    faults: dict[str, dict[str, Any]] = {}
    base, worst, worst_at, peak = 0, 0.0, first, 0
    began = time.monotonic()
    n = first
    for n in range(first, first + inputs):
        given = make(_random(seed, n))
        at = time.monotonic()
        _AT.pack_into(note, 0, n, at)
        try:
            outcomes[run(given)] += 1
            values += 1
        except documented as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # what is not documented is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            outcomes["FAULT"] += 1
            faults.setdefault(key, {"input": n, "trace": traceback.format_exc()})
        took = time.monotonic() - at
        if took > worst:
            worst, worst_at = took, n
        if not n % 256:
            now = _resident()
            peak = max(peak, now)
            if n - first <= _WARM:
                base = max(base, now)
            elif now - base > growth:
                gc.collect()
                if _resident() - base > growth:
                    faults.setdefault("memory", {"input": n, "trace": f"{(_resident() - base) >> 20} MiB more than at the beginning"})
            if len(faults) >= _MOST_FAULTS or "memory" in faults or (seconds and time.monotonic() - began > seconds):
                break
    shutil.rmtree(folder, ignore_errors=True)
    if n - first >= _WARM and values * 1000 < n - first and not faults:
        faults["specimens"] = {"input": n, "trace": f"only {values} inputs ended in a value: what is behind the first look was not reached"}
    return {
        "inputs": n + 1 - first, "outcomes": outcomes, "faults": faults, "seconds": time.monotonic() - began, "worst": worst,
        "worst_at": worst_at,
        "peak": max(peak, _resident()), "base": base,
    }  # fmt: skip


def _child(options: argparse.Namespace) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    faulthandler.enable()
    with open(options.note, "r+b") as file, mmap.mmap(file.fileno(), _AT.size) as note:
        found = work(options.parser, options.seed, options.first, options.inputs, options.seconds, note, options.growth << 20)
    print(json.dumps(found))
    return 0


def _watched(options: argparse.Namespace, parser: str, folder: Path) -> dict[str, Any]:
    """Run a child; kill it when an input takes longer than is allowed. Returns its findings."""
    path = folder / "note"
    path.write_bytes(_AT.pack(-1, math.inf))
    command = [
        sys.executable, *_COMMAND, "--child", "--parser", parser, "--note", str(path), "--seed", str(options.seed), "--first",
        str(options.first),
        "--inputs", str(options.inputs), "--seconds", str(options.seconds), "--growth", str(options.growth),
    ]  # fmt: skip
    with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err, path.open("rb") as note:
        child = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "FUZZ_FOLDER": str(folder)})
        before = (-1, 0.0)
        while child.poll() is None:
            try:
                child.wait(0.5)
            except subprocess.TimeoutExpired:
                now = _AT.unpack(os.pread(note.fileno(), _AT.size, 0))
                stuck, before = now == before, now  # one look may find a note that is half written
                if stuck and now[0] >= 0 and time.monotonic() - now[1] > options.patience:
                    child.send_signal(signal.SIGABRT)  # faulthandler says where it is
                    child.wait()
        at = _AT.unpack(os.pread(note.fileno(), _AT.size, 0))[0]
        out.seek(0)
        err.seek(0)
        said, trace = out.read().decode(), err.read().decode(errors="replace")
    if child.returncode == 0:
        return dict(json.loads(said))
    how = "hangs" if child.returncode == -signal.SIGABRT else f"ends the process ({child.returncode})"
    fault = {"input": at, "trace": trace[-3000:]}
    return {
        "inputs": max(at + 1 - options.first, 0), "outcomes": {}, "faults": {f"input {at} {how}": fault}, "seconds": 0.0, "worst": 0.0,
        "worst_at": at, "peak": 0, "base": 0,
    }  # fmt: skip


def _one(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        subject = _subject(options.parser, Path(folder))
        given = subject.make(_random(options.seed, options.only))
        print(repr(given))
        try:
            print("->", subject.run(given))
        except subject.documented as error:
            print(f"-> {type(error).__name__}: {error}")
    return 0


def _place() -> str | None:
    """Return a folder in memory where there is one: a million small files are no good to a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    """Fuzz the parsers that are named; exit status 1 when one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parser", required=True, choices=[*PARSERS, "all"])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long, whatever is left (0: not)")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds for one input")
    parser.add_argument("--growth", type=int, default=128, help="MiB that the process may grow by")
    parser.add_argument("--only", type=int, help="show this input and what comes of it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--note", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return _child(options)
    if options.only is not None:
        return _one(options)
    bad = 0
    for name in PARSERS if options.parser == "all" else (options.parser,):
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_place()) as folder:
            found = _watched(options, name, Path(folder))
        shown = ", ".join(f"{count} {what}" for what, count in sorted(found["outcomes"].items(), key=lambda one: -one[1]))
        rate = found["inputs"] / found["seconds"] if found["seconds"] else 0
        print(
            f"{name}: {found['inputs']} inputs of seed {options.seed}, {len(found['faults'])} faults, {rate:,.0f} inputs/s, longest "
            f"{found['worst'] * 1e3:.1f} ms (input {found['worst_at']}), memory {found['peak'] >> 20} MiB at the peak, "
            f"{max(found['peak'] - found['base'], 0) >> 20} MiB over the beginning\n  {shown}", flush=True,
        )  # fmt: skip
        for what, fault in found["faults"].items():
            bad += 1
            print(f"  FAULT: {what}, input {fault['input']}\n{fault['trace']}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
