"""Convolutional encoder, decoder and critics in DCGAN's style (SWAE; its supplement is not public).

Strided 4x4 convolutions halve the side while it is even and above 4: 28 -> 7, 32 -> 4, 64 -> 4, 128 -> 4.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import fold

from dtrain.nets.mlp import full_precision, leaky

SLOPE = 0.2


def _sides(image_shape: tuple[int, int, int]) -> list[int]:
    """The sides of the square feature maps, from the image's down. ValueError for what cannot be halved."""
    _, height, width = image_shape
    if height != width or height % 2 or height < 24:
        raise ValueError(f"images must be square with an even side of at least 24, got {height} x {width}")
    sides = [height]
    while sides[-1] % 2 == 0 and sides[-1] > 4:
        sides.append(sides[-1] // 2)
    return sides


def _filters(width: int, levels: int) -> list[int]:
    """width at the first level, twice as many at each next one, up to 8 * width (as AE-OT has them at 128)."""
    return [width * min(2**i, 8) for i in range(levels)]


def _halvings(image_shape: tuple[int, int, int], width: int) -> tuple[list[nn.Module], int]:
    """Strided convolutions with leaky ReLU, all but the first with batch norm; and how many features come out."""
    sides = _sides(image_shape)
    filters = [image_shape[0], *_filters(width, len(sides) - 1)]
    layers: list[nn.Module] = []
    for i in range(len(sides) - 1):
        norm = [nn.BatchNorm2d(filters[i + 1])] if i else []
        convolution = nn.Conv2d(filters[i], filters[i + 1], 4, 2, 1, bias=not norm)
        layers += [convolution, *norm, nn.LeakyReLU(SLOPE)]
    return layers, filters[-1] * sides[-1] ** 2


class ImageEncoder(nn.Module):
    """[B, C, S, S] -> float32 [B, code]."""

    def __init__(self, image_shape: tuple[int, int, int], code: int, width: int) -> None:
        super().__init__()
        layers, features = _halvings(image_shape, width)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, code))

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self.body(x))


class ToPixels(nn.ConvTranspose2d):
    """nn.ConvTranspose2d(inputs, channels, 4, 2, 1): [B, inputs, H, W] -> [B, channels, 2 H, 2 W].

    On a CPU as products whose columns are added up where they overlap: oneDNN has no fast kernel for few channels.
    Training takes half of its time for one channel, 0.8 to 1 of it for three.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__(inputs, channels, 4, 2, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x, output_size)
        rows, height, width = len(x), *x.shape[2:]
        columns = torch.bmm(self.weight.flatten(1).t().expand(rows, -1, -1), x.flatten(2))
        pixels = fold(columns, (2 * height, 2 * width), 4, padding=1, stride=2)
        return pixels if self.bias is None else pixels + self.bias[:, None, None]


class ImageDecoder(nn.Module):
    """[B, code] -> float32 [B, C, S, S] in [-1, 1]: ImageEncoder's mirror. squash: False leaves out the last tanh."""

    def __init__(self, image_shape: tuple[int, int, int], code: int, width: int, squash: bool = True) -> None:
        super().__init__()
        self.squash = squash
        sides = _sides(image_shape)
        filters = _filters(width, len(sides) - 1)[::-1]
        start = filters[0] * sides[-1] ** 2
        layers: list[nn.Module] = [
            nn.Linear(code, start, bias=False), nn.Unflatten(1, (filters[0], sides[-1], sides[-1])),
            nn.BatchNorm2d(filters[0]), nn.ReLU(),
        ]  # fmt: skip
        for above, below in pairwise(filters):
            layers += [nn.ConvTranspose2d(above, below, 4, 2, 1, bias=False), nn.BatchNorm2d(below), nn.ReLU()]
        self.body = nn.Sequential(*layers, ToPixels(filters[-1], image_shape[0]))

    def forward(self, z: Tensor) -> Tensor:
        x = full_precision(self.body(z))
        return x.tanh() if self.squash else x


class PatchCritic(nn.Module):
    """[B, C, S, S] -> float32 logits [B, 1, S', S'], one per patch, as PatchGAN's.

    The last two convolutions have stride 1, the `strides` before them 2: a logit sees 16, 34, 70 pixels of a side for
    1, 2, 3. ValueError unless that is less than the image.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, strides: int) -> None:
        super().__init__()
        filters = [image_shape[0], *_filters(width, strides + 1)]
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(filters)):
            norm = [nn.BatchNorm2d(outputs)] if i else []
            convolution = nn.Conv2d(inputs, outputs, 4, 2 if i < strides else 1, 1, bias=not norm)
            layers += [convolution, *norm, nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers, nn.Conv2d(filters[-1], 1, 4, 1, 1))
        seen = receptive_field(self.body)
        if seen >= min(image_shape[1:]):
            raise ValueError(f"a patch of {strides} strided layers has {seen} pixels, the image {image_shape[1:]}")

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self.body(x))


def receptive_field(layers: nn.Sequential) -> int:
    """Pixels of a side that an output of convolutions depends on: r <- (r - 1) stride + kernel, from the last one."""
    field = 1
    for layer in reversed(layers):
        if isinstance(layer, nn.Conv2d):
            field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
    return field


class ImageCritic(nn.Module):
    """Images and what they are said to show, forward(x [B, C, S, S], s [B, E]) -> three float32 outputs.

    Logits [B, 1]; the features F of the last convolution, [B, N]; those of the hidden layer, [B, HIDDEN]. s is laid
    over every place of the last convolution. condition: E, or 0 where it judges images alone, whatever s is. (Learned
    prior, Table A3.)
    """

    HIDDEN, TEXT = 1000, 64

    def __init__(self, image_shape: tuple[int, int, int], condition: int, width: int) -> None:
        super().__init__()
        layers, features = _halvings(image_shape, width)
        self.body = nn.Sequential(*layers)
        self.condition = condition
        self.text = leaky(condition, self.TEXT)
        places = _sides(image_shape)[-1] ** 2
        self.hidden = leaky(features + places * (self.TEXT if condition else 0), self.HIDDEN)
        self.head = nn.Linear(self.HIDDEN, 1)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.body(x)
        text = self.text(s[:, : self.condition])[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        hidden = self.hidden(torch.cat([maps, text], 1).flatten(1))
        return full_precision(self.head(hidden)), full_precision(maps.flatten(1)), full_precision(hidden)


class JointCritic(nn.Module):
    """Pairs of image and code, forward(x [B, C, S, S], z [B, d], kept [B, *KEPT]) -> float32 logits [B, 1] (ALI).

    kept: factors of the units of the last two layers, which are dropped where it is 0. Sizes are not stated.
    """

    CODE, HIDDEN = 512, 1024
    KEPT = (2, HIDDEN)

    def __init__(self, image_shape: tuple[int, int, int], code: int, width: int) -> None:
        super().__init__()
        layers, features = _halvings(image_shape, width)
        self.image = nn.Sequential(*layers, nn.Flatten())
        self.code = nn.Sequential(leaky(code, self.CODE), leaky(self.CODE, self.CODE))
        self.joint = nn.ModuleList([leaky(features + self.CODE, self.HIDDEN), leaky(self.HIDDEN, self.HIDDEN)])
        self.head = nn.Linear(self.HIDDEN, 1)

    def forward(self, x: Tensor, z: Tensor, kept: Tensor) -> Tensor:
        hidden = torch.cat([self.image(x), self.code(z)], 1)
        for layer, factors in zip(self.joint, kept.unbind(1), strict=True):
            hidden = layer(hidden) * factors
        return full_precision(self.head(hidden))
