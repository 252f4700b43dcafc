"""Counter-based randomness: every random number is a function of (seed, position, site), never of a state.

A training sample's noise depends only on its global position in the stream of images, so it is the same
for any number of processes, any micro-batching, and after any restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _mix(h: Tensor) -> Tensor:
    """A bijective finaliser on 32-bit words kept in int64 (each input bit flips each output bit half the time)."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def _mix_int(h: int) -> int:
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def _site(name: str) -> int:
    """FNV-1a. In plain Python, so that torch.compile folds it into a number; zlib.crc32 would break the graph."""
    h = 0x811C9DC5
    for letter in name:
        h = ((h ^ ord(letter)) * 0x01000193) & _MASK
    return h


def site_key(seed: int, site: str) -> int:
    """32-bit key of a named place in the algorithm."""
    return _mix_int(_mix_int(seed & _MASK) ^ _mix_int((seed >> 32) & _MASK) ^ _site(site))


@dataclass(frozen=True)
class Noise:
    """Random numbers for a batch of rows.

    seed: the run's seed. position: int64 [B], one unique counter per row (images seen before that sample).
    dtype: of the numbers. The same (seed, position, site) gives the same numbers on every call.
    """

    seed: int
    position: Tensor
    dtype: torch.dtype = torch.float32

    def __getitem__(self, rows: slice) -> Noise:
        """The noise of some of the rows."""
        return replace(self, position=self.position[rows])

    @classmethod
    def of(cls, n: int, seed: int = 0, start: int = 0, device: torch.device | str = "cpu") -> Noise:
        """Noise for n rows at positions start .. start+n-1, outside a data stream (sampling, pictures)."""
        return cls(seed, torch.arange(start, start + n, device=device))

    def _words(self, key: int, count: int) -> Tensor:
        """[B, count] uniform 32-bit words in int64."""
        low, high = self.position & _MASK, self.position >> 32
        row = _mix(_mix(low ^ key) + _mix(high ^ _mix_int(key)) & _MASK)
        column = torch.arange(1, count + 1, device=row.device) * _GOLDEN
        return _mix(_mix((row[:, None] + column) & _MASK) ^ row[:, None])

    def _uniform(self, site: str, count: int) -> Tensor:
        words = self._words(site_key(self.seed, site), count)
        return ((words >> 8).to(torch.float32) + 0.5).mul_(2.0**-24)

    def uniform(self, site: str, *shape: int) -> Tensor:
        """U(0, 1), open at both ends up to float32 rounding: [B, *shape]."""
        return self._uniform(site, math.prod(shape)).view(-1, *shape).to(self.dtype)

    def normal(self, site: str, *shape: int) -> Tensor:
        """N(0, 1) by Box-Muller, |z| < 5.9, to float32 rounding: [B, *shape]."""
        count = math.prod(shape)
        half = (count + 1) // 2
        u = self._uniform(site, 2 * half)
        radius, angle = (-2.0 * u[:, :half].log()).sqrt(), u[:, half:] * (2.0 * math.pi)
        z = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return z[:, :count].reshape(-1, *shape).to(self.dtype)

    def inner(self, iteration: int) -> Noise:
        """Other numbers for the same rows, for each time that an inner loop comes back to a batch."""
        return replace(self, seed=site_key(self.seed, f"inner {iteration}"))

    def chunk(self, n: int) -> list[Noise]:
        """n equal parts along the batch."""
        return [replace(self, position=p) for p in self.position.chunk(n)]
