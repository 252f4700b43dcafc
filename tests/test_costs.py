"""What a run has cost, from the lines of its metrics file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dtrain.compare import costs
from dtrain.hours import hours


def test_hours_are_of_training_and_without_waits() -> None:
    start = {"kind": "start", "time": 100.0, "world_size": 2}
    again = {"kind": "start", "world_size": 4}  # as earlier versions wrote it
    first = [
        {"kind": "train", "time": 110.0},
        {"kind": "evaluation", "time": 150.0},
        {"kind": "train", "time": 160.0},
    ]
    second = [{"kind": "train", "time": t} for t in (5000.0, 5007.0)]
    made = [start, *first, again, *second, {"kind": "evaluation", "time": 9e9}]
    seconds = 2 * (160 - 100) + 4 * 7
    cpu = {"threads": 3, "device": "x86_64"}
    assert hours(made, cpu) == ("core-hours", pytest.approx(3 * seconds / 3600))
    gpu = cpu | {"device": "NVIDIA H100 80GB HBM3"}
    assert hours(made, gpu) == ("GPU-hours", pytest.approx(seconds / 3600))


def test_images_are_counted_by_stage() -> None:
    stages = [(SimpleNamespace(name="autoencoder", source=None), 4), (SimpleNamespace(name="potential", source=1), 4)]
    made = [
        {"kind": "stage", "message": "stage autoencoder: 4 steps"}, {"kind": "train", "images": 64},
        {"kind": "stage", "message": "stage potential: 4 steps"}, {"kind": "train", "images": 80},
    ]  # fmt: skip
    run: Any = SimpleNamespace(lines=made)
    trainer: Any = SimpleNamespace(stages=stages)
    assert costs.images(run, trainer) == {"images/autoencoder": 64, "rows/potential": 80}
