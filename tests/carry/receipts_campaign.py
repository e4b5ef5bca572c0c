"""Receipts against a model, many times: `python tests/carry/receipts_campaign.py --rounds 300 --seed 1`. Stops at the first wrong one."""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog needs a child process
from gap_story import STEPS, Story


def main() -> int:
    """Tell stories of up to 80 steps."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=300)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    began, happened = time.monotonic(), collections.Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="simspool-receipts-"))
    os.environ["SIMSPOOL_STATE"] = str(folder / "state")
    try:
        for n in range(given.rounds):
            rnd = random.Random(f"{given.seed}/{n}")
            story = Story(folder / str(n))
            try:
                for _ in range(rnd.randrange(80)):
                    what = rnd.choice(list(STEPS))
                    a, b, c, d = STEPS[what]
                    story.step(what, rnd.randint(a, b), rnd.randint(c, d))
                    story.check()
                    happened[what] += 1
                story.end()
            except BaseException:
                print(f"round {n} of seed {given.seed}", file=sys.stderr)
                raise
            finally:
                story.close()
            shutil.rmtree(folder / str(n))
    finally:
        shutil.rmtree(folder)
    steps = ", ".join(f"{count} x {what}" for what, count in sorted(happened.items()))
    print(f"{given.rounds} stories in {time.monotonic() - began:.0f} s, nothing wrong: {steps}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
