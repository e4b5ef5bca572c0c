"""Train a small neural network on real data (scikit-learn's bundled scans of handwritten digits), recorded offline.

    python examples/train_digits.py --epochs 30

Metrics: loss per batch, accuracy per epoch. Files: the weights at the best accuracy, the confusion matrix.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from simspool.sdk import Run

Array = NDArray[np.float64]


class Network:
    """Two layers, ReLU and softmax, trained by plain gradient descent."""

    def __init__(self, hidden: int, dice: np.random.Generator) -> None:
        self.w1 = dice.normal(0, np.sqrt(2 / 64), (64, hidden))
        self.b1 = np.zeros(hidden)
        self.w2 = dice.normal(0, np.sqrt(2 / hidden), (hidden, 10))
        self.b2 = np.zeros(10)

    def probabilities(self, x: Array) -> tuple[Array, Array]:
        """Return the hidden layer and each class's probability."""
        hidden = np.maximum(x @ self.w1 + self.b1, 0)
        scores = hidden @ self.w2 + self.b2
        scores -= scores.max(axis=1, keepdims=True)
        exponents = np.exp(scores)
        return hidden, exponents / exponents.sum(axis=1, keepdims=True)

    def step(self, x: Array, y: NDArray[np.int64], rate: float) -> float:
        """Learn from one batch; return its mean loss."""
        hidden, p = self.probabilities(x)
        rows = np.arange(len(y))
        loss = -np.log(p[rows, y] + 1e-12).mean()
        p[rows, y] -= 1
        p /= len(y)
        back = (p @ self.w2.T) * (hidden > 0)
        self.w2 -= rate * hidden.T @ p
        self.b2 -= rate * p.sum(axis=0)
        self.w1 -= rate * x.T @ back
        self.b1 -= rate * back.sum(axis=0)
        return float(loss)

    def predict(self, x: Array) -> NDArray[np.int64]:
        """Return the likeliest class of each row."""
        return self.probabilities(x)[1].argmax(axis=1)


def main() -> None:
    """Train, and record how it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between batches, to watch a sync while it trains")
    options = parser.parse_args()

    digits = load_digits()
    dice = np.random.default_rng(7)
    order = dice.permutation(len(digits.target))
    x, y = digits.data[order] / 16.0, digits.target[order]
    train, test = slice(0, 1400), slice(1400, None)
    network = Network(options.hidden, dice)

    with Run(mode="offline") as run:
        run.init("digits", metadata=vars(options) | {"samples": len(y)}, tags=["training", "digits"], folder="/examples")
        print(f"run {run.id}", flush=True)
        step, best = 0, 0.0
        for epoch in range(1, options.epochs + 1):
            shuffled = dice.permutation(1400)
            for start in range(0, 1400, options.batch):
                rows = shuffled[start : start + options.batch]
                loss = network.step(x[train][rows], y[train][rows], options.rate)
                run.log_metrics({"loss": loss, "epoch": epoch}, step=step)
                step += 1
                time.sleep(options.pause)
            predicted = network.predict(x[test])
            accuracy = float((predicted == y[test]).mean())
            run.log_metrics({"accuracy": accuracy}, step=step)
            if accuracy > best:
                best = accuracy
                run.log_event(f"epoch {epoch}: best accuracy so far, {accuracy:.3f}")
                run.save_object(network.w1, category="output", name=f"w1-epoch-{epoch}")
        confusion = np.zeros((10, 10), dtype=np.int64)
        np.add.at(confusion, (y[test], predicted), 1)
        run.save_object(confusion, category="output", name="confusion")
        run.update_metadata({"best_accuracy": best})
        print(f"done: {step} batches, best accuracy {best:.3f}", flush=True)


if __name__ == "__main__":
    main()
