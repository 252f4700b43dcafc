"""python -m dtrain.evaluate.classifier <shards> <file>: train the classifier of evaluate.fidelity=digits.

Minutes on a laptop; the accuracy on the held-out split is printed and kept in the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dtrain.data.resident import ResidentLoader
from dtrain.data.shards import ShardError, open_split
from dtrain.data.stream import Spec
from dtrain.evaluate.extractors import DigitClassifier
from dtrain.noise import Noise

BATCH, LEARNING_RATE, SHIFT = 128, 3e-3, 2


def train(shards: Path, file: Path, epochs: int = 6) -> float:
    """Trains on <shards>/train and writes weights and accuracy to the file. Returns the accuracy on <shards>/test.

    Digits are shifted by up to 2 pixels; Adam with a one-cycle schedule. ShardError where the shards cannot be read,
    ValueError where they are not labelled digits of 28 x 28.
    """
    splits = [open_split(shards / name) for name in ("train", "test")]
    for split in splits:
        if split.image_shape != (1, 28, 28) or "labels" not in split.arrays or len(split.class_names) != 10:
            raise ValueError(f"{split.path} has no labelled digits of 1 x 28 x 28")
    torch.manual_seed(0)
    digits, held_out = (ResidentLoader(s, Spec(BATCH, (0.0, 1.0))) for s in splits)
    net = DigitClassifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    steps = epochs * len(digits) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step, batch in zip(range(1, steps + 1), digits.batches(), strict=False):
        assert batch.labels is not None
        _, logits = net(_shifted(batch.x, batch.noise))
        loss = F.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    net.eval()
    with torch.no_grad():
        right = sum(int((net(b.x)[1].argmax(1) == b.labels).sum()) for b in held_out.once())
    accuracy = right / len(held_out)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": net.state_dict(), "accuracy": accuracy}, file)
    return accuracy


def _shifted(x: Tensor, noise: Noise) -> Tensor:
    """Every image moved by its own whole number of pixels, up to SHIFT in each direction, zeros coming in."""
    side = x.shape[-1]
    padded = F.pad(x, [SHIFT] * 4)
    start = (noise.uniform("shift", 2) * (2 * SHIFT + 1)).long()
    rows, columns = (start[:, i, None] + torch.arange(side) for i in (0, 1))
    return padded[torch.arange(len(x))[:, None, None, None], 0, rows[:, None, :, None], columns[:, None, None, :]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtrain.evaluate.classifier", description=__doc__)
    parser.add_argument("shards", type=Path, help="prepared MNIST, e.g. shards/mnist")
    parser.add_argument("file", type=Path, help="what to write, e.g. shards/mnist/classifier.pt")
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    try:
        accuracy = train(given.shards, given.file, given.epochs)
    except (ShardError, ValueError) as e:
        print(f"dtrain.evaluate.classifier: {e}", file=sys.stderr)
        return 2
    print(f"{given.file}: accuracy on the held-out digits {accuracy:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
