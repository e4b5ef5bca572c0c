"""Heat in a plate that blows up: an explicit scheme whose time step is raised over its stability limit, stopped by an alert.

    agent run &                                   # no server is needed, and no network
    python examples/diverging.py --checkpoint plate.npz

At `--raise-at` the time step becomes 1.6 times what is stable (dt <= dx**2 / 4 D). The field then oscillates and grows until it overflows
and the mean temperature is NaN. The alert `diverged` fires; its abort calls `save_checkpoint` in this process, which writes the last
field that was finite, and the script is ended. Without the alert it would compute NaN until its wall time is over.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from simspool.sdk import Run


def step(field: np.ndarray[Any, Any], number: float) -> np.ndarray[Any, Any]:
    """Return the field after one explicit step; `number` is D dt / dx**2, stable up to 1/4. The rim is kept at 0."""
    out = field.copy()
    inner = field[1:-1, 1:-1]
    out[1:-1, 1:-1] = inner + number * (field[2:, 1:-1] + field[:-2, 1:-1] + field[1:-1, 2:] + field[1:-1, :-2] - 4 * inner)
    return out


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="cells a side")
    parser.add_argument("--raise-at", type=int, default=2000, help="the step at which the time step becomes unstable")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--checkpoint", default="plate.npz")
    options = parser.parse_args()
    good: dict[str, Any] = {}  # replaced as a whole: the callback runs beside the loop

    def save_checkpoint(run: Run) -> None:
        """Called once, in a thread of the SDK, when the run is aborted."""
        np.savez(options.checkpoint, **good)
        run.log_event(f"checkpoint of step {good['step']} written")
        run.save_file(options.checkpoint, category="output")

    run = Run(abort_callback=save_checkpoint)
    run.init("diverging-plate", folder="/examples", metadata={"size": options.size, "raise_at": options.raise_at})
    run.create_alert("diverged", rule="is not finite", metric="temperature.*", trigger_abort=True)
    print(f"run {run.id}", flush=True)
    field = np.zeros((options.size, options.size))
    field[options.size // 4 : options.size // 2, options.size // 4 : options.size // 2] = 100.0
    with np.errstate(all="ignore"):
        for number in range(options.steps):
            field = step(field, 0.2 if number < options.raise_at else 0.4)
            mean, peak = float(field.mean()), float(np.abs(field).max())
            if np.isfinite(peak):
                good = {"step": number, "field": field}
            run.log_metrics({"temperature.mean": mean, "temperature.max": peak}, step=number)
    run.close()


if __name__ == "__main__":
    main()
