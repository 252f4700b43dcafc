"""Sample quality of every generative model against the training data, by the features of a pretrained network.

Sampling and feature extraction are split over the ranks; rank 0 turns features into scores, by torch-fidelity's own
functions where it has them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision.transforms.functional import gaussian_blur

from dtrain.data.build import Loader
from dtrain.data.order import positions
from dtrain.evaluate import extractors
from dtrain.evaluate.conditional import classified
from dtrain.evaluate.evaluation import Evaluation
from dtrain.noise import Noise
from dtrain.world import World, gather

CHUNK = 64  # images a rank samples at a time
KID_SUBSET = 1000
DIRECTIONS = 1000  # of the sliced distance

Images = Iterator[tuple[Tensor, Tensor]]  # positions int64 [B], and uint8 [B, C, H, W]


@dataclass(frozen=True)
class Features:
    """Of N images in their order. rows, blurred [N, D]: blurred is [N, 0] where not asked for. logits [N, K].

    sharpness [N]: see `laplacian`.
    """

    rows: Tensor
    blurred: Tensor
    logits: Tensor
    sharpness: Tensor


def scores(evaluation: Evaluation) -> dict[str, float]:
    """The scores of evaluate.fidelity_samples samples of every generative model; equal on every rank.

    Called <metric>/<extractor>/<prior>; …/data are the held-out split's own. Distances compare as many samples as
    training and held-out images: evaluate.fidelity_samples, or as many as the smaller split has (`distance_images`).
    Where the extractor classifies digits, also what `classified` says of them. Features of the two splits are kept
    under a hash of data and extractor.
    """
    world, settings, train = evaluation.site.world, evaluation.settings, evaluation.site.train
    extractor, digest = extractors.make(settings, world.device)
    read = partial(collect, extractor=extractor, blur=settings.blurred, world=world)
    equal = min(settings.fidelity_samples, len(train), len(evaluation.heldout))

    def of_split(loader: Loader) -> Features:
        how = f"{'-lossy' * loader.lossy}-{digest}{'-blurred' * settings.blurred}-{equal}"
        file = evaluation.cache / f"{loader.split.manifest['sha256'][:16]}{how}.pt"
        return _cached(file, world, lambda: read(_data(evaluation, loader, equal)))

    def score(name: str, features: Features) -> dict[str, float]:
        if not world.main:
            return {}
        found = measure(features, reference) | classified(evaluation, name, features.logits)
        return {f"{metric}/{settings.fidelity}/{name}": value for metric, value in found.items()}

    def of_samples(name: str) -> dict[str, float]:
        return score(name, read(_samples(evaluation, name, settings.fidelity_samples)))

    reference = of_split(train)
    values = score("data", of_split(evaluation.heldout))
    for name in evaluation.priors(evaluation.noise(1)):
        if evaluation.algorithm.condition is None:  # the held-out split decides no more than how many are compared
            values |= evaluation.keep(f"scores of {name} by {equal}", partial(of_samples, name))
        else:
            values |= of_samples(name)
    shared: dict[str, float] = world.share(values)
    return shared


def measure(features: Features, reference: Features) -> dict[str, float]:
    """Scores of a set of images. Distances to the reference's N images are those of the first N."""
    count = min(len(features.rows), len(reference.rows))
    rows, real = features.rows[:count], reference.rows[:count]
    kernel = kid_features_to_metric(rows, real, kid_subset_size=min(KID_SUBSET, count), verbose=False)
    neighbours = prc_features_to_metric(rows, real, save_cpu_ram=True, verbose=False)
    found = {
        "fid": frechet(rows, real),
        "kid": kernel["kernel_inception_distance_mean"],
        "mind": sliced(rows, real),
        "precision": neighbours["precision"],
        "recall": neighbours["recall"],
        "sharpness": float(features.sharpness.mean()),
        "distance_images": float(count),
    }
    if features.logits.shape[1]:
        inception = isc_features_to_metric(features.logits)
        found |= {"isc": inception["inception_score_mean"], "isc_std": inception["inception_score_std"]}
    if reference.blurred.shape[1]:
        found["fid_blurred"] = frechet(features.blurred[:count], reference.blurred[:count])
    return found


def frechet(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of Gaussians fitted to features [N, D] and [M, D]."""
    sides = ({"mu": x.mean(0).numpy(), "sigma": x.T.cov().numpy()} for x in (a.double(), b.double()))
    distance: float = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    return distance


def sliced(a: Tensor, b: Tensor) -> float:
    """D times the mean over random directions of the squared 1-D 2-Wasserstein distance: features [N, D] both.

    For two Gaussians that differ in their mean alone it is the Frechet distance (arXiv 2605.06797).
    """
    generator = torch.Generator().manual_seed(0)
    total, dim = 0.0, a.shape[1]
    for _ in range(DIRECTIONS // 100):
        directions = F.normalize(torch.randn(dim, 100, generator=generator), dim=0)
        one, other = ((x.float() @ directions).sort(0).values.double() for x in (a, b))
        total += float((one - other).square().mean(0).sum())
    return dim * total / DIRECTIONS


def laplacian(images: Tensor) -> Tensor:
    """The variance over pixels of the Laplacian of the mean of the channels, in [0, 1]: uint8 [B, C, H, W] -> [B]."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=images.device)
    grey = (images.float() / 255).mean(1, keepdim=True)
    return F.conv2d(grey, kernel.view(1, 1, 3, 3)).flatten(1).var(1)


def collect(images: Images, extractor: FeatureExtractorBase, blur: bool, world: World) -> Features:
    """Of all ranks' images together, in the order of their positions. blur: also by a Gaussian of one pixel."""
    parts: list[tuple[Tensor, ...]] = []
    for at, x in images:
        sharp = laplacian(x)
        colours = x if x.shape[1] == getattr(extractor, "channels", 3) else x.expand(-1, 3, -1, -1)
        features, logits = extractor(colours)
        blurred = extractor(gaussian_blur(colours, [7, 7], [1.0, 1.0]))[0] if blur else features[:, :0]
        parts.append((at, features, blurred, logits, sharp))
    at, *found = (gather(torch.cat(column)) for column in zip(*parts, strict=True))
    order = at.argsort()
    return Features(*(values[order].cpu() for values in found))


def _data(evaluation: Evaluation, loader: Loader, count: int) -> Images:
    """This rank's part of `count` images, evenly spread over the split."""
    total = len(loader)
    for batch in loader.once():
        evaluation.site.poll()
        at = batch.noise.position
        chosen = (at + 1) * count // total > at * count // total
        yield at[chosen], evaluation.to_bytes(batch.x[chosen])


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
