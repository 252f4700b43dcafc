"""The two lists of an evaluation: measures f(evaluation) -> numbers, pictures f(evaluation) -> figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.heldout import held_out


def fidelity(evaluation: Evaluation) -> dict[str, float]:
    """Sample quality by evaluate.fidelity, if it names an extractor."""
    if evaluation.settings.fidelity is None:
        return {}
    from dtrain.evaluate.fidelity import scores  # loads torch-fidelity

    return scores(evaluation)


MEASURES: tuple[Callable[[Evaluation], dict[str, float]], ...] = (held_out, fidelity)
"""Each returns metrics called family/…, the same on every rank; dtrain.metrics knows the families."""


@dataclass(frozen=True)
class Evaluator:
    """Calls the lists, on every rank. The algorithm is in evaluation mode, and gradients are off."""

    evaluation: Evaluation

    def measure(self) -> dict[str, float]:
        """All numbers. Interrupted once all ranks agree to stop."""
        values: dict[str, float] = {}
        for measure in MEASURES:
            values |= measure(self.evaluation)
        return values

    def draw(self) -> None:
        """All pictures, into the run's images/: all ranks compute (sharded networks need it), rank 0 writes."""
        from dtrain.evaluate.pictures import PICTURES, close  # loads matplotlib

        site = self.evaluation.site
        for picture in PICTURES:
            site.poll()
            for name, figure in picture(self.evaluation).items():
                if site.world.main:
                    folder = site.folder / "images"
                    folder.mkdir(parents=True, exist_ok=True)
                    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
            close()
