"""Building a loader by name: options, extras, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.data.build import LOADERS, build_loader
from dtrain.data.shards import Split
from tests.data.backends import needs

CONFIGS = Path(__file__).parents[2] / "configs"


def build(split: Split, name: str, batch_size: int = 8, **options: Any) -> Any:
    return build_loader(name, split, batch_size=batch_size, value_range=(0.0, 1.0), **options)


def test_an_unknown_loader_lists_the_known_ones(colour: Split) -> None:
    with pytest.raises(ValueError, match="'residnet': choose one of resident, ffcv, dali"):
        build(colour, "residnet")


def test_an_unknown_option_lists_the_known_ones(colour: Split) -> None:
    with pytest.raises(ValueError, match="loader=resident has no option workers: it takes memory_map"):
        build(colour, "resident", workers=2)


@pytest.mark.parametrize("more", [{"batch_size": 9, "world": 2}, {"batch_size": 0}])
def test_a_batch_that_ranks_cannot_share_is_refused(colour: Split, more: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a positive multiple of world"):
        build(colour, "resident", **more)


def test_a_rank_outside_the_world_is_refused(colour: Split) -> None:
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"):
        build(colour, "resident", rank=2, world=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        pytest.param("ffcv", {"workers": 10_000}, "this machine's cores", marks=needs("ffcv")),
        pytest.param("ffcv", {"encoding": "png"}, "encoding=raw or encoding=jpg", marks=needs("ffcv")),
        pytest.param("dali", {"source": "lmdb"}, "source=npy or source=tar", marks=needs("nvidia.dali")),
        pytest.param("dali", {"batches_ahead": 0}, "at least 1", marks=needs("nvidia.dali")),
    ],
)
def test_bad_values_are_refused(colour: Split, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(colour, name, **options)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_yaml_names_only_options_that_its_loader_takes(colour: Split, name: str) -> None:
    package = LOADERS[name][2]
    if package:
        pytest.importorskip(package)
    options = yaml.safe_load((CONFIGS / "loader" / f"{name}.yaml").read_text())
    assert options.pop("name") == name
    assert len(next(build(colour, name, **options).batches())) == 8


# An import hook that hides the extras, as on a machine without them.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ffcv", "nvidia"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from pathlib import Path
from dtrain.data.build import build_loader
from dtrain.data.shards import open_split
split = open_split(Path(sys.argv[1]))
common = dict(batch_size=8, value_range=(0.0, 1.0))
print(len(next(build_loader("resident", split, **common).batches())))
for name in ("ffcv", "dali"):
    try:
        build_loader(name, split, **common)
    except ImportError as e:
        print(e)
"""


def test_without_the_extras_the_message_names_the_command_and_resident_works(colour_shards: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(colour_shards)], capture_output=True, text=True, check=True
    )
    resident, ffcv, dali = done.stdout.splitlines()
    assert resident == "8"
    assert "pip install '.[ffcv]'" in ffcv and "loader=resident" in ffcv
    assert "pip install '.[dali]'" in dali
