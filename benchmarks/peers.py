"""The tools beside us, measured with the same scripts in one run, each in an environment of its own.

    python benchmarks/peers.py [--quick] [--only TOOL,...] [--measure NAME,...] [--output docs/peers.md] [--json FILE] [--seed N]
                               [--folder DIR] [--venvs DIR | --no-venvs]

The environments are made at the first time (about 2 GB, some minutes) and kept. Absolute numbers move with the machine and its load;
compare the ratios. `--quick` is a smoke test of a few minutes, not a result. Ends with 1 where ours failed or lost something.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import Plan, raise_file_limit
from peer_measures import Bench, calls, files, imports, kill_after, kills
from peer_page import page
from peer_sync import sync
from peer_venvs import MODES, TOOLS, VERSIONS, Environments, Unavailable, default_folder

OURS = [mode.name for mode in MODES if mode.tool == "simspool"]
MEASURES = {"imports": imports, "calls": calls, "kills": kills, "files": files}


def _names(known: list[str]) -> Any:
    def parse(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; there are {', '.join(known)}")
        return [name for name in known if name in text.split(",")]

    return parse


def measure(bench: Bench, tools: list[str], wanted: list[str], found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Measure into `found`: {"cells": {measure: {mode: cell}}, "sync": [line, ...]}. After each measure, `keep` is called."""
    missing = {}
    for tool in tools:
        try:
            bench.environments.python(tool)
        except Unavailable as error:
            missing[tool] = str(error)
            bench.plan.say(f"{tool}: {error}")
    there = [mode for mode in MODES if mode.tool in tools and mode.tool not in missing]
    for name in wanted:
        start = time.monotonic()
        bench.plan.say(f"{name} ...")
        if name == "sync":
            found["sync"] = sync(bench, [tool for tool in tools if tool not in missing])
        else:
            failed = {mode.name: {"failed": missing[mode.tool]} for mode in MODES if mode.tool in missing and name in mode.measures}
            found["cells"][name] = MEASURES[name](bench, [mode for mode in there if name in mode.measures]) | failed
        bench.plan.say(f"{name}: {time.monotonic() - start:.0f} s")
        keep()


def ours_is_whole(found: dict[str, Any]) -> bool:
    """Tell whether nothing of ours failed, nothing that was acknowledged is missing, and nothing is there twice."""
    ours = [cells[name] for measure, cells in found["cells"].items() if measure != "kills" for name in OURS if name in cells]
    ours += list(found["cells"].get("kills", {}).get("simspool", {}).values())
    ours += [line for line in found["sync"] if line["tool"] == "simspool"]
    return not any("failed" in cell or cell.get("found", 0) < cell.get("acknowledged", 0) or cell.get("repeated", 0) for cell in ours)


def _places(options: argparse.Namespace) -> list[tuple[str, Path | None]]:
    return [("--output", options.output), ("--json", options.json)]


def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*MEASURES, "sync"]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=_names(TOOLS), help=f"some of {', '.join(TOOLS)}")
    parser.add_argument("--measure", type=_names(everything), default=everything, help=f"some of {', '.join(everything)}")
    parser.add_argument("--output", type=Path, help="where the page goes (default: only printed)")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the rounds and the moments of the kills")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on which disk to measure")
    parser.add_argument("--venvs", type=Path, default=default_folder(), help="where the environments are kept")
    parser.add_argument("--no-venvs", action="store_true", help="measure only simspool, as this interpreter has it")
    options = parser.parse_args()
    for name, place in (("--folder", options.folder), *((n, p.parent) for n, p in _places(options) if p)):
        if not place.is_dir():
            parser.error(f"{name}: there is no folder {place}")
    if options.no_venvs and options.only not in (None, ["simspool"]):
        parser.error("--no-venvs measures only simspool: leave out --only, or --no-venvs")
    raise_file_limit()
    plan = Plan(options.quick, options.folder)
    tools = ["simspool"] if options.no_venvs else options.only or TOOLS
    bench = Bench(plan, Environments(options.venvs, plan.say, own=options.no_venvs), options.seed)
    started = time.monotonic()
    run = {
        "quick": options.quick, "seed": options.seed, "date": f"{datetime.now(UTC):%Y-%m-%d}", "load": [os.getloadavg()[0]],
        "kill_after": kill_after(plan), "tools": tools, "versions": VERSIONS,
    }  # fmt: skip
    found: dict[str, Any] = {"run": run, "cells": {}, "sync": []}

    def keep() -> None:
        run["minutes"] = (time.monotonic() - started) / 60
        run["load"] = [run["load"][0], os.getloadavg()[0]]
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        if options.output:
            options.output.write_text(page(found))

    measure(bench, tools, options.measure, found, keep)
    if not options.output:
        print(page(found))
    return 0 if ours_is_whole(found) else 1


if __name__ == "__main__":
    sys.exit(main())
