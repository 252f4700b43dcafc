"""Counter-based randomness: every random number is a function of (seed, position, site), never of a state.

A training sample's noise depends only on its global position in the stream of images, so it is the same
for any number of processes, any micro-batching, and after any restart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_SMALL = 1024  # numbers of a row: what has more is no faster in one pass with others, and takes its memory
Sites = tuple[tuple[str, int], ...]


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


class _Tables(NamedTuple):
    """What a pass over several sites looks up: int64. T: half the numbers of all sites.

    key, mixed_key [S]: of the sites. owner [T]: the site of each pair of numbers. columns [2, T]: the multiples that
    make the pair's two words.
    """

    key: Tensor
    mixed_key: Tensor
    owner: Tensor
    columns: Tensor


@functools.lru_cache(maxsize=64)
def _tables(seed: int, sites: Sites, device: torch.device) -> _Tables:
    """Filled on the device: a list of numbers would be copied there, for which the host waits."""
    fill = functools.partial(torch.full, dtype=torch.int64, device=device)
    count = functools.partial(torch.arange, device=device)
    keys, halves = [site_key(seed, name) for name, _ in sites], [(n + 1) // 2 for _, n in sites]
    columns = (torch.cat([count(1, h + 1) for h in halves]), torch.cat([count(h + 1, 2 * h + 1) for h in halves]))
    return _Tables(
        torch.cat([fill((1,), key) for key in keys]),
        torch.cat([fill((1,), _mix_int(key)) for key in keys]),
        torch.cat([fill((h,), site) for site, h in enumerate(halves)]),
        torch.stack(columns) * _GOLDEN,
    )


@dataclass(frozen=True)
class Noise:
    """Random numbers for a batch of rows.

    seed: the run's seed. position: int64 [B], one unique counter per row (images seen before that sample).
    dtype: of the numbers. The same (seed, position, site) gives the same numbers on every call.
    """

    seed: int
    position: Tensor
    dtype: torch.dtype = torch.float32
    _drawn: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        if site in self._drawn and self._drawn[site].shape[1] == count:
            return self._drawn[site].view(-1, *shape).to(self.dtype)
        half = (count + 1) // 2
        u = self._uniform(site, 2 * half)
        z = torch.cat(_box_muller(u[:, :half], u[:, half:]), dim=1)
        return z[:, :count].reshape(-1, *shape).to(self.dtype)

    def ahead(self, shapes: Mapping[str, tuple[int, ...]]) -> Noise:
        """The same noise, with the normals of these sites (name -> shape without B) drawn in one pass.

        So a GPU starts some 80 kernels for all of them, not as many for each. torch.compile fuses them by itself.
        """
        counts = ((site, math.prod(shape)) for site, shape in shapes.items())
        sites: Sites = tuple((site, count) for site, count in counts if count <= _SMALL)
        found = replace(self)
        if len(sites) > 1 and not torch.compiler.is_compiling():
            found._drawn.update(self._pass(sites))
        return found

    def _pass(self, sites: Sites) -> dict[str, Tensor]:
        """Every site's normals: [B, count] each, as `normal` draws them."""
        at = _tables(self.seed, sites, self.position.device)
        low, high = (self.position & _MASK)[:, None], (self.position >> 32)[:, None]
        rows = _mix(_mix(low ^ at.key) + _mix(high ^ at.mixed_key) & _MASK)[:, None, at.owner]
        words = _mix(_mix((rows + at.columns) & _MASK) ^ rows)
        u = ((words >> 8).to(torch.float32) + 0.5).mul_(2.0**-24)
        halves = [(count + 1) // 2 for _, count in sites]
        pairs = zip(*(z.split(halves, 1) for z in _box_muller(u[:, 0], u[:, 1])), strict=True)
        return {site: torch.cat(pair, 1)[:, :count] for (site, count), pair in zip(sites, pairs, strict=True)}

    def inner(self, iteration: int) -> Noise:
        """Other numbers for the same rows, for each time that an inner loop comes back to a batch."""
        return replace(self, seed=site_key(self.seed, f"inner {iteration}"))

    def chunk(self, n: int) -> list[Noise]:
        """n equal parts along the batch."""
        return [replace(self, position=p) for p in self.position.chunk(n)]


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent N(0, 1) from two U(0, 1)."""
    radius, angle = (-2.0 * first.log()).sqrt(), second * (2.0 * math.pi)
    return radius * angle.cos(), radius * angle.sin()
