"""The two lists of an evaluation: measures f(evaluation) -> numbers, pictures f(evaluation) -> figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from dtrain.config import ConfigError, HeldOut
from dtrain.data.batch import Batch
from dtrain.data.build import Loader
from dtrain.data.shards import ShardError
from dtrain.evaluate import conditional
from dtrain.evaluate.critic_gap import critic_gap
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.heldout import held_out, use_of_the_deepest
from dtrain.evaluate.hue_match import hue_match, words_asked_for
from dtrain.evaluate.mixture import GaussianMixture
from dtrain.evaluate.transport import names, transport_numbers
from dtrain.faults import Interrupted

DISTANCES = ("fid", "kid", "mind", "precision", "recall", "sharpness", "distance_images")
OF_CLASSES = ("isc", "isc_std")  # of extractors that classify
REHEARSED = 16  # rows, of every rank


def fidelity(evaluation: Evaluation) -> dict[str, float]:
    """Sample quality by evaluate.fidelity, if it names an extractor and the samples are images."""
    if evaluation.settings.fidelity is None or not evaluation.algorithm.levels:
        return {}
    from dtrain.evaluate.fidelity import scores  # loads torch-fidelity

    return scores(evaluation)


MEASURES: tuple[Callable[[Evaluation], dict[str, float]], ...] = (
    held_out,
    use_of_the_deepest,
    critic_gap,
    fidelity,
    transport_numbers,
    conditional.categories,
    hue_match,
)
"""Each returns metrics called family/…, the same on every rank; dtrain.metrics knows the families."""


class FirstBatch:
    """A loader whose pass over the split ends after the first rows of one batch: a whole one delays the start."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.split, self.lossy = loader, loader.split, loader.lossy

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return self.loader.batches(start)

    def once(self) -> Iterator[Batch]:
        return (batch[:REHEARSED] for batch in islice(self.loader.once(), 1))

    def close(self) -> None:
        self.loader.close()


def _sampled(evaluation: Evaluation) -> dict[str, torch.Size]:
    """The shape of two samples from every prior; in the place of a mixture that is yet to be fitted, from N(0, I)."""
    noise = evaluation.noise(2)
    if evaluation.settings.sampler == "gmm":
        code = evaluation.algorithm.encode(next(iter(evaluation.heldout.once())).x)
        evaluation.kept["mixture"] = GaussianMixture.standard(code.shape[1:], code.device)
    return {k: evaluation.algorithm.decode(prior(noise)).shape for k, prior in evaluation.priors(noise).items()}


@dataclass(frozen=True)
class Evaluator:
    """Calls the lists, on every rank. The algorithm is in evaluation mode, and gradients are off.

    valid, test: the evaluations on the two held-out splits. tell: is called with the name of each measure and picture
    when it begins.
    """

    valid: Evaluation
    test: Evaluation
    tell: Callable[[str], None] = lambda name: None

    def on(self, split: HeldOut) -> Evaluation:
        """The split's, with nothing that was kept of other weights."""
        evaluation = self.valid if split == "valid" else self.test
        evaluation.forget()
        return evaluation

    def rehearse(self) -> set[str]:
        """Measures and samples one batch, before anything is trained; the names of the metrics that there will be.

        ConfigError saying what of the algorithm's evaluation does not work.
        """
        self._rehearse(self.test)
        return self._rehearse(self.valid)

    @staticmethod
    def _rehearse(whole: Evaluation) -> set[str]:
        evaluation = replace(whole, heldout=FirstBatch(whole.heldout), kept={})
        model = type(evaluation.algorithm).__name__
        try:
            metrics = set(held_out(evaluation)) | set(use_of_the_deepest(evaluation, chains=2))
            shapes = _sampled(evaluation) if evaluation.algorithm.levels else {}
        except (ShardError, Interrupted):
            raise
        except Exception as e:  # whatever the algorithm's own code raises
            where = evaluation.heldout.split.path
            raise ConfigError(f"{model} cannot be evaluated on one batch of {where}: {type(e).__name__}: {e}") from e
        wanted = (2, *evaluation.heldout.split.image_shape)
        wrong = [f"{k}: {tuple(shape)}" for k, shape in shapes.items() if tuple(shape) != wanted]
        if wrong:
            raise ConfigError(f"{model} samples images of another shape than the data's {wanted}: {', '.join(wrong)}")
        metrics |= names(evaluation.algorithm) | conditional.names(evaluation)
        if words_asked_for(evaluation) is not None:
            metrics |= {f"hue_match/{k}" for k in (*shapes, "data")}
        if evaluation.settings.fidelity:
            for k in (*shapes, "data"):
                blurred = ("fid_blurred",) if evaluation.settings.blurred else ()
                classes = OF_CLASSES if evaluation.settings.fidelity != "dinov2" else ()
                families = (*DISTANCES, *blurred, *classes, *conditional.families(evaluation, k))
                metrics |= {f"{m}/{evaluation.settings.fidelity}/{k}" for m in families}
        return metrics

    def measure(self, split: HeldOut) -> dict[str, float]:
        """All numbers. Interrupted once all ranks agree to stop."""
        evaluation, values = self.on(split), dict[str, float]()
        for measure in MEASURES:
            self.tell(measure.__name__)
            values |= measure(evaluation)
        return values

    def draw(self, split: HeldOut) -> list[Path]:
        """All pictures, into the run's images/: all ranks compute (sharded networks need it), rank 0 writes.

        Returns the files, on rank 0.
        """
        from dtrain.evaluate.pages import close  # loads matplotlib
        from dtrain.evaluate.pictures import OF_IMAGES, OF_RUNS

        evaluation, files = self.on(split), list[Path]()
        site = evaluation.site
        for picture in (*OF_IMAGES, *OF_RUNS) if evaluation.algorithm.levels else OF_RUNS:
            self.tell(picture.__name__)
            site.poll()
            for name, figure in picture(evaluation).items():
                if site.world.main:
                    folder = site.folder / "images"
                    folder.mkdir(parents=True, exist_ok=True)
                    files.append(folder / f"{name}.png")
                    figure.savefig(files[-1], dpi=110, bbox_inches="tight")
            close()
        return files
