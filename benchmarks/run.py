"""All figures in one command, each beside its reference, measured in the same run.

    python benchmarks/run.py [--quick] [--only NAME]... [--output docs/benchmarks.md] [--folder DIR]

Absolute numbers move with the machine and its load; compare the ratios. `--quick` is a smoke test of a few minutes, not a result.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import abort_latency
import bundles
import caller
import large_files
import pipeline
import programs
import rules
import sampling
from harness import Figure, Plan, raise_file_limit

from simspool.spool import filesystem

BENCHMARKS: dict[str, Callable[[Plan], list[Figure]]] = {
    "log_metrics": caller.log_metrics,
    "import": caller.import_time,
    "save_file": caller.save_file,
    "ingest": pipeline.ingest,
    "drain": pipeline.drain,
    "idle": pipeline.idle,
    "many_runs": pipeline.many_runs,
    "thousand_runs": pipeline.thousand_runs,
    "large_files": large_files.large_files,
    "bundles": bundles.bundles,
    "sampling": sampling.sampling,
    "programs": programs.programs,
    "abort_latency": abort_latency.abort_latency,
    "rules": rules.rules,
}


def machine(folder: Path) -> list[str]:
    """Return what the numbers depend on."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    versions = ", ".join(f"{name} {version(name)}" for name in ("simspool", "aiohttp", "msgpack", "zstandard", "sqlite-utils", "watchdog"))
    return [
        f"- {pipeline.cores()} cores of {model}, {memory / 1e6:.0f} GB memory, {filesystem.type_of(str(folder))} for the spool",
        f"- Linux {platform.release()}, {platform.python_implementation()} {platform.python_version()}",
        f"- {versions}",
    ]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def page(figures: dict[str, list[Figure]], plan: Plan, took: float, load: float) -> str:
    """Return the results page."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python benchmarks/run.py`" + (" `--quick` (a smoke test, not a result)" if plan.quick else "") + ".",
        "Each figure is measured beside its reference in the same run: absolute numbers move with the machine, ratios hardly do.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {took / 60:.0f} minutes, load average at the start {load:.1f}:",
        "",
        *machine(plan.folder),
        "",
        "| figure | value | bar | | reference in the same run | detail | n |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in figures.values():
        for f in group:
            bar = "" if f.bar is None else f"{'≤' if f.lower else '≥'} {f.bar:g} {f.unit}"
            lines.append(f"| {f.name} | {_number(f.value)} {f.unit} | {bar} | {f.verdict} | {f.reference} | {f.detail} | {f.n} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="may be repeated")
    parser.add_argument("--output", type=Path, help="where the results page goes (default: only printed)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on which disk to measure")
    options = parser.parse_args()
    raise_file_limit()
    plan = Plan(options.quick, options.folder)
    start, load, figures, failed = time.monotonic(), os.getloadavg()[0], {}, False
    for name in options.only or BENCHMARKS:
        plan.say(f"{name} ...")
        try:
            figures[name] = BENCHMARKS[name](plan)
        except Exception:
            failed = True
            traceback.print_exc()
            continue
        for f in figures[name]:
            plan.say(f"  {f.name}: {_number(f.value)} {f.unit} {f.verdict}  {f.detail}")
    text = page(figures, plan, time.monotonic() - start, load)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)
    missed = any(f.verdict == "**missed**" for group in figures.values() for f in group)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
