"""run1 -> run2: the outputs of one run are the inputs of the next. The same bytes are stored, and later sent, once.

    python examples/lineage.py

`run1` makes guesses of a square root and saves them. The second half is the example of Simvue's page on obtaining data, as written:
without a configured server, its `Client()` reads the spool; with one, `agent sync` must have sent `run1` before.
"""

from __future__ import annotations

import numpy as np

from simspool.sdk import Client, Run
from simspool.spool import InvalidSpool, RunNotFound

TARGET = 2.0


def first_run() -> None:
    """Look for the square root among evenly spaced guesses; save them and the closest one."""
    with Run() as run:
        run.init("run1")
        guesses = np.linspace(0, TARGET, 101)
        errors = np.abs(guesses**2 - TARGET)
        for step, error in enumerate(errors):
            run.log_metrics({"error": error}, step=step)
        run.save_object(guesses, category="output", name="guesses")
        run.save_object({"closest": float(guesses[errors.argmin()])}, category="output", name="closest")


def second_run() -> None:
    """The example as written."""
    # Download output files from previous run
    client = Client()
    client.get_artifacts_as_files('run1', category='output', path='data')  # fmt: skip  # noqa: Q000

    # Create a new run
    with Run() as run:
        run.init('run2')  # fmt: skip  # noqa: Q000
        run.save_directory('data', category='input')  # fmt: skip  # noqa: Q000


if __name__ == "__main__":
    try:
        Client().get_run_id_from_name("run1")
    except (InvalidSpool, RunNotFound):
        first_run()
    second_run()
