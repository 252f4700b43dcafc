"""What a step watches: logged where it is measured, and moving nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dtrain.models.base import Terms
from dtrain.world import start
from tests.harness import Session, Watched, make_config
from tests.processes import launch

FSDP = "trainer.strategy=fsdp"


def watching(*overrides: str) -> dict[str, float]:
    """A critic's score of the decoder's images, and its gradient there; of one step."""
    session = Session(make_config("adversary", *overrides), start("cpu", timeout=60))
    algorithm: Any = session.algorithm

    def score(batch: Any) -> Terms:
        assert not any(p.requires_grad for p in algorithm.parameters())
        x = batch.x.clone().requires_grad_()
        logits = algorithm.image_critic(x)[0]
        (gradient,) = torch.autograd.grad(logits.mean(), x)
        squares = algorithm.gather(gradient.square().sum()[None]).sum() / session.world.size**2
        return {"logit": logits.mean(), "slope": squares.sqrt(), "never": logits.sum() / 0}

    session.updater.begin(0, 0, 640, measure=False)
    session.updater.watch("score", score, next(session.stream))
    assert not any(k.startswith("watch/") for k in session.updater.read(session.world).values)
    session.updater.begin(1, 16, 640)
    watched = Watched(algorithm, session.updater, lambda *_: None)
    watched.watch("score", score, next(session.stream))  # moves nothing
    session.stage.step(session.stream, session.updater)
    metrics = session.updater.read(session.world)
    assert metrics.nonfinite is None
    return {k: v for k, v in metrics.values.items() if k.startswith("watch/")}


def test_what_is_watched_is_logged_in_measured_steps_and_moves_nothing() -> None:
    """The same under every strategy; what is not finite is left out, and no error."""
    alone = watching()
    assert alone.keys() == {"watch/score/logit", "watch/score/slope"} and alone["watch/score/slope"] > 0
    for overrides in ((), (FSDP,)):
        for seen in launch(2, watching, *overrides):
            assert seen == pytest.approx(alone, rel=1e-9)
