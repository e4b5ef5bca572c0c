"""Every fault of the list, as far as this machine allows, against real processes; the results page.

    python tests/faults/campaign.py [--only F1,F8] [--seed N] [--scale sample|quick|full] [--output docs/faults.md] [--json FILE [--resume]]

Each part prints how often it was tried, what was violated (I1-I9, DESIGN 3), and how long it took. Exit code 1 when anything was. After
each part --json is written; with --resume, the parts that it has of this seed and scale are taken from there and not played again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import results
from trials import PARTS, SCALES, Context, Part, load, play

# Faults of the list that no part plays, and why.
NOT_PLAYED = {
    "F5": "LazyFS is in no package registry; the model of F4 tears pages and reorders folders instead",
    "F18": "the cost of a call is measured by the [benchmarks](benchmarks.md)",
    "F20": "how soon an alert aborts is measured by the [benchmarks](benchmarks.md)",
    "F23": "seeded defects: below, by `tests/faults/sensitivity.py`",
}


def campaign(only: set[str], seed: int, scale: str, folder: Path, before: Sequence[Part], keep: Callable[[list[Part]], None]) -> list[Part]:
    """Play the parts of these faults (all: an empty set), one after another; say each on stderr. Those that were played `before` are taken
    from there; `keep` is given what is done so far.
    """
    load()
    context = Context(seed, scale, folder, say=lambda text: print(text, file=sys.stderr, flush=True))
    done, known = [], {(part.fault, part.name): part for part in before}
    try:
        for fault, name, how in PARTS:
            if only and fault not in only:
                continue
            if (fault, name) in known:
                done.append(known[fault, name])
                continue
            context.say(f"{fault} {name} ...")
            out = play(context, fault, name, how)
            done.append(out)
            context.say(f"    {results.line(out)}")
            for text in out.violations[:5]:
                context.say(f"    VIOLATION {text}")
            keep(done)
    finally:
        context.close()
    return done


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="these faults only: F1,F8")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", choices=SCALES, default="quick", help="full: about 100 minutes on two quiet cores")
    parser.add_argument("--output", type=Path, help="write the results page")
    parser.add_argument("--json", type=Path, help="write the results as JSON, after each part")
    parser.add_argument("--resume", action="store_true", help="do not play again what --json has of this seed and scale")
    parser.add_argument("--folder", type=Path, help="where trials write (default: the temporary folder)")
    options = parser.parse_args()
    only = {f.strip().upper() for f in options.only.split(",") if f.strip()}
    load()
    unknown = only - {fault for fault, _, _ in PARTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(dict.fromkeys(f for f, _, _ in PARTS))}")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["SIMSPOOL_AGENT"] = "off"
    folder = Path(tempfile.mkdtemp(prefix="simspool-faults-", dir=options.folder))

    def found_in(parts: Sequence[Part]) -> dict[str, Any]:
        about = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"), "seed": options.seed, "scale": options.scale,
            "seconds": round(sum(p.seconds for p in parts)),
            "machine": f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, CPython {platform.python_version()}",
        }  # fmt: skip
        return {"about": about, "parts": [results.as_dict(p) for p in parts], "not_played": NOT_PLAYED}

    def keep(parts: list[Part]) -> None:
        if options.json:
            options.json.write_text(json.dumps(found_in(parts), indent=1) + "\n")

    before: list[Part] = []
    if options.resume and options.json and options.json.exists():
        kept = json.loads(options.json.read_text())
        if (kept["about"]["seed"], kept["about"]["scale"]) == (options.seed, options.scale):
            before = [Part(**part) for part in kept["parts"]]
    try:
        parts = campaign(only, options.seed, options.scale, folder, before, keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = found_in(parts)
    keep(parts)
    if options.output:
        results.write_page(options.output, found)
    violations = sum(len(p.violations) for p in parts)
    trials, skipped = sum(p.n for p in parts), sum(bool(p.skipped) for p in parts)
    print(f"{trials} trials, {violations} violations, {skipped} parts skipped, {found['about']['seconds']} s, seed {options.seed}")
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
