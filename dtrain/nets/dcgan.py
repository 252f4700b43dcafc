"""Convolutional encoder, decoder and patch critic in DCGAN's style (SWAE; its supplement is not public).

Strided 4x4 convolutions halve the side while it is even and above 4: 28 -> 7, 32 -> 4, 64 -> 4, 128 -> 4.
The patch critic needs a side of at least 24.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from dtrain.nets.mlp import full_precision

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


class ImageEncoder(nn.Module):
    """[B, C, S, S] -> float32 [B, code]."""

    def __init__(self, image_shape: tuple[int, int, int], code: int, width: int) -> None:
        super().__init__()
        sides = _sides(image_shape)
        filters = [image_shape[0], *_filters(width, len(sides) - 1)]
        layers: list[nn.Module] = []
        for i in range(len(sides) - 1):
            norm = [nn.BatchNorm2d(filters[i + 1])] if i else []
            convolution = nn.Conv2d(filters[i], filters[i + 1], 4, 2, 1, bias=not norm)
            layers += [convolution, *norm, nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters[-1] * sides[-1] ** 2, code))

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self.body(x))


class ImageDecoder(nn.Module):
    """[B, code] -> float32 [B, C, S, S] in [-1, 1]: ImageEncoder's mirror."""

    def __init__(self, image_shape: tuple[int, int, int], code: int, width: int) -> None:
        super().__init__()
        sides = _sides(image_shape)
        filters = _filters(width, len(sides) - 1)[::-1]
        start = filters[0] * sides[-1] ** 2
        layers: list[nn.Module] = [
            nn.Linear(code, start, bias=False), nn.Unflatten(1, (filters[0], sides[-1], sides[-1])),
            nn.BatchNorm2d(filters[0]), nn.ReLU(),
        ]  # fmt: skip
        for above, below in pairwise(filters):
            layers += [nn.ConvTranspose2d(above, below, 4, 2, 1, bias=False), nn.BatchNorm2d(below), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.ConvTranspose2d(filters[-1], image_shape[0], 4, 2, 1))

    def forward(self, z: Tensor) -> Tensor:
        return full_precision(self.body(z)).tanh()


class PatchCritic(nn.Module):
    """[B, C, S, S] -> float32 logits [B, 1, S', S'], one per patch: three strided layers, as PatchGAN's."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for i, stride in enumerate((2, 2, 1)):
            wide = width * 2 ** (i + 1)
            convolution = nn.Conv2d(wide // 2, wide, 4, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide), nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self.body(x))
