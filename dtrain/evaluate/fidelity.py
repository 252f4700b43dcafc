"""Sample quality by torch-fidelity: Inception Score, FID and KID of every generative model against the training data.

Sampling and feature extraction are split over the ranks; moments are summed in float64; torch-fidelity's own
functions then turn features into scores, once, on rank 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from dtrain.data.build import Loader
from dtrain.data.order import positions
from dtrain.evaluate import extractors
from dtrain.evaluate.conditional import classified
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.heldout import Sums
from dtrain.noise import Noise
from dtrain.world import World, gather

CHUNK = 64  # images a rank samples at a time
KID_SUBSET = 1000

Images = Iterator[tuple[Tensor, Tensor]]  # positions int64 [B], and uint8 [B, C, H, W]


@dataclass(frozen=True)
class Features:
    """Of a set of images. mean [D], covariance [D, D]: float64, of all. rows [K, D], logits [K, L]: of the first."""

    mean: Tensor
    covariance: Tensor
    rows: Tensor
    logits: Tensor

    def statistics(self) -> dict[str, object]:
        """As torch-fidelity names them."""
        return {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}


def scores(evaluation: Evaluation) -> dict[str, float]:
    """isc, isc_std, fid, kid of evaluate.fidelity_samples samples of every generative model; equal on every rank.

    Called <metric>/<extractor>/<prior>. fid and kid are distances to the whole training split; …/data are the
    held-out split's own. Where the extractor classifies digits, also what `classified` says of them. Features of the
    two splits are kept under a hash of data and extractor.
    """
    world, settings = evaluation.site.world, evaluation.settings
    extractor, digest = extractors.make(settings, world.device)
    count = settings.fidelity_samples

    def of_split(loader: Loader) -> Features:
        lossy = "-lossy" if loader.lossy else ""
        file = evaluation.cache / f"{loader.split.manifest['sha256'][:16]}{lossy}-{digest}-{count}.pt"
        return _cached(file, world, lambda: collect(_data(evaluation, loader), extractor, world, count))

    reference = of_split(evaluation.site.train)
    sets = {"data": of_split(evaluation.heldout)}
    for name in evaluation.priors(evaluation.noise(1)):
        sets[name] = collect(_samples(evaluation, name, count), extractor, world, count)
    values: dict[str, float] = {}
    if world.main:
        for name, features in sets.items():
            found = measure(features, reference) | classified(evaluation, name, features.logits)
            values |= {f"{metric}/{settings.fidelity}/{name}": value for metric, value in found.items()}
    shared: dict[str, float] = world.share(values)
    return shared


def measure(features: Features, reference: Features) -> dict[str, float]:
    """torch-fidelity's scores of a set of images against a reference."""
    inception = isc_features_to_metric(features.logits)
    distance = fid_statistics_to_metric(features.statistics(), reference.statistics(), verbose=False)
    subset = min(KID_SUBSET, len(features.rows), len(reference.rows))
    kernel = kid_features_to_metric(features.rows, reference.rows, kid_subset_size=subset, verbose=False)
    return {
        "isc": inception["inception_score_mean"],
        "isc_std": inception["inception_score_std"],
        "fid": distance["frechet_inception_distance"],
        "kid": kernel["kernel_inception_distance_mean"],
    }


def collect(images: Images, extractor: FeatureExtractorBase, world: World, keep: int) -> Features:
    """Moments of all ranks' images together, and the features of those at positions below `keep`, in their order."""
    sums = Sums()
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for at, x in images:
        features, logits = extractor(
            x if x.shape[1] == getattr(extractor, "channels", 3) else x.expand(-1, 3, -1, -1)
        )
        rows = features.double()
        sums.add("count", torch.tensor(float(len(rows))))
        sums.add("sum", rows.sum(0))
        sums.add("outer", rows.T @ rows)
        low = at < keep
        kept.append((at[low], features[low], logits[low]))
    total = sums.reduce(world)
    count, mean = total["count"], total["sum"] / total["count"]
    covariance = (total["outer"] - count * torch.outer(mean, mean)) / (count - 1)
    order, rows, logits = (gather(torch.cat(parts)) for parts in zip(*kept, strict=True))
    first = order.argsort()
    return Features(mean, covariance, rows[first].cpu(), logits[first].cpu())


def _data(evaluation: Evaluation, loader: Loader) -> Images:
    for batch in loader.once():
        evaluation.site.poll()
        yield batch.noise.position, evaluation.to_bytes(batch.x)


def _samples(evaluation: Evaluation, prior: str, count: int) -> Images:
    """This rank's part of `count` samples, each a function of its position alone."""
    world = evaluation.site.world
    bounds = np.linspace(0, count, -(-count // (CHUNK * world.size)) + 1).astype(np.int64)
    for begin, end in pairwise(bounds):
        evaluation.site.poll()
        at = positions(int(begin), int(end - begin), world.rank, world.size)
        noise = Noise(evaluation.settings.seed, torch.from_numpy(at).to(world.device))
        yield (
            noise.position,
            evaluation.to_bytes(evaluation.algorithm.decode(evaluation.priors(noise)[prior](noise))),
        )


def _cached(file: Path, world: World, compute: Callable[[], Features]) -> Features:
    """From the file, or computed by all ranks and kept by rank 0. A file that cannot be read is computed anew."""
    found = _read(file) if world.main else None
    if world.share(found is not None):
        return found or Features(*[torch.empty(0)] * 4)  # only rank 0 measures
    features = compute()
    if world.main:
        unfinished = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(astuple(features), unfinished)
            unfinished.rename(file)
        except (OSError, RuntimeError) as e:  # a full disk: torch's writer says RuntimeError
            with contextlib.suppress(OSError):
                unfinished.unlink()
            print(f"features of the data are not kept, the next evaluation computes them again: {e}", flush=True)
    return features


def _read(file: Path) -> Features | None:
    try:
        return Features(*torch.load(file, weights_only=True))
    except Exception:  # missing, or damaged: torch.load raises almost anything
        return None
