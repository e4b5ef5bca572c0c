"""Is our harness able to notice? Plays every seeded defect on a copy of the tree, against what should catch it (F23).

    python tests/faults/sensitivity.py [--only WORDS] [--jobs 2] [--output docs/faults.md] [--json FILE]

The working tree is never changed: spool, sdk, agent and tests are copied, with an interpreter environment of their own that finds the copy
also in isolated child processes. Each catcher must pass on an unchanged copy, and fail on the changed one. Exit code 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import results
from copies import PACKAGES, ROOT, interpreter_of
from defects import DEFECTS, Defect

_LIMIT = 300  # seconds: a defect that makes its catcher hang is caught


class Copy:
    """A copy of the tree, importable as `simspool` by its own interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc")
        for name in (*PACKAGES, "tests", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignore, symlinks=True)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.python = interpreter_of(folder)

    def apply(self, defect: Defect) -> None:
        """Change the copy. Raises ValueError when the source is not what the defect was written for."""
        for file, old, new in defect.changes:
            path = self.folder / file
            text = path.read_text()
            if text.count(old) != 1:
                raise ValueError(f"{defect.name}: its old text is {text.count(old)} times in {file}: write the defect anew")
            path.write_text(text.replace(old, new))

    def undo(self, defect: Defect) -> None:
        """Restore what `apply` changed."""
        for file, _, _ in defect.changes:
            shutil.copy(ROOT / file, self.folder / file)

    def passes(self, catcher: str) -> tuple[bool, str]:
        """Run a catcher; return whether it passed, and the end of what it said."""
        words, commands = shlex.split(catcher), []
        if words[0] == "campaign":
            commands.append([self.python, "tests/faults/campaign.py", "--scale", "sample", "--only", words[1]])
            words = words[2:]
        if words:
            commands.append([self.python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "120", *words])
        environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTEST_CURRENT_TEST"}}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        for command in commands:
            try:
                done = subprocess.run(
                    command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=_LIMIT, check=False
                )
            except subprocess.TimeoutExpired:
                return False, f"it hung for {_LIMIT} s"
            if done.returncode == 5:
                return False, "pytest found no such test"
            if done.returncode:
                return False, (done.stdout + done.stderr)[-1500:]
        return True, ""


def play(chosen: Sequence[Defect], folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Play defects side by side, each worker on its own copy; return what became of each."""
    copies = [Copy(folder / f"copy{n}") for n in range(jobs)]
    queue = [(None, catcher) for catcher in dict.fromkeys(d.catcher for d in chosen)] + [(d, d.catcher) for d in chosen]
    sound: dict[str, str] = {}

    def one(work: tuple[Defect | None, str]) -> dict[str, Any] | None:
        defect, catcher = work
        copy = copies.pop()
        began = time.monotonic()
        try:
            if defect is None:
                passed, said = copy.passes(catcher)
                sound[catcher] = "" if passed else said
                return None
            try:
                copy.apply(defect)
                passed, said = copy.passes(catcher)
            except ValueError as error:
                passed, said = True, str(error)
            finally:
                copy.undo(defect)
        finally:
            copies.append(copy)
        seconds = time.monotonic() - began
        word, why = ("MISSED", f": {said}") if passed else ("caught", "")
        print(f"{word} {defect.name} ({catcher}, {seconds:.0f} s){why}", file=sys.stderr, flush=True)
        return {"defect": defect.name, "catcher": catcher, "caught": not passed, "why": said[-300:], "seconds": round(seconds, 1)}

    with ThreadPoolExecutor(jobs) as pool:
        found = [r for r in pool.map(one, queue) if r is not None]
    for result in found:
        if sound[result["catcher"]]:  # what fails anyway catches nothing
            result |= {"caught": False, "why": f"the catcher fails without the defect: {sound[result['catcher']][-600:]}"}
            print(f"NO CATCHER for {result['defect']}: {result['why']}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="defects whose name has these words (several: with commas)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, help="put the table into the results page")
    parser.add_argument("--json", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    chosen = [d for d in DEFECTS if any(words.strip() in d.name for words in options.only.split(","))]
    if not chosen:
        parser.error(f"no defect has {options.only!r} in its name")
    folder = Path(tempfile.mkdtemp(prefix="simspool-defects-"))
    try:
        found = play(chosen, folder, max(1, options.jobs))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.output:
        results.write_defects(options.output, found)
    caught = sum(r["caught"] for r in found)
    print(f"{caught} of {len(found)} seeded defects caught")
    return int(caught < len(found))


if __name__ == "__main__":
    sys.exit(main())
