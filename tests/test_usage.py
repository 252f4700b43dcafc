"""--help names every key, with what it may be."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import pytest
from omegaconf import OmegaConf

from dtrain import compose as configs
from dtrain import usage
from dtrain.config import ConfigError
from tests.runs import command


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """The keys of all values that are no section."""
    found: set[str] = set()
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key}
    return found


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [],
            [
                "seed=0 integer >= 0",
                "trainer.batch_size=128 integer > 0 # of all processes together",
                "trainer.strategy=ddp ddp | fsdp # one process runs the bare networks",
                "model.lambda_rec=0.1 number >= 0",
                "model.schedule=mnist mnist | svhn | celeba",
                "optim.default.betas=[0.9, 0.999] [number >= 0 and < 1, number >= 0 and < 1]",
                "evaluate.text=null text | null",
                "loader.memory_map=false true | false",
            ],
        ),
        (
            ["model=aeot", "data=mnist", "model.slope=0.5"],
            [
                "model.slope=0.5 number >= 0",
                "model.autoencoder=null path | null",
                "model.workers=",
                "data.path=shards/mnist path",
                "{autoencoder: ",
            ],
        ),
        (["model=swae_celeba"], ["model.priors=[", "model.inner_steps=", "model.code_error=sum mean | sum"]),
    ],
)
def test_every_key_stands_there_with_type_range_and_value(overrides: list[str], said: list[str]) -> None:
    text = usage.text(overrides)
    assert max(map(len, text.splitlines())) <= usage.WIDTH
    shown = set(re.findall(r"^  ([a-z0-9_]+(?:\.[a-z0-9_]+)*)=", text, re.MULTILINE))
    composed: Any = OmegaConf.to_container(configs.compose(overrides))
    whole = {k for k in leaves(composed) if not k.startswith(("trainer.max_steps.", "optim.groups."))}
    assert whole <= shown
    plain = " ".join(text.split())
    for words in said:
        assert words in plain, words


def test_keys_that_only_the_class_knows_stand_there_too() -> None:
    assert "model.lambda_sigma_decay=0.0 number" in " ".join(usage.text(["~model.lambda_sigma_decay"]).split())


def test_help_begins_with_examples_and_may_be_cut_short() -> None:
    asked = shlex.join(command("model=vae", "-h"))
    cut = subprocess.run(f"{asked} | head -n 20", shell=True, capture_output=True, text=True, check=True)
    assert "python -m dtrain experiment=quickstart" in cut.stdout.split("Groups")[0]
    assert "dtrain-sweep -m" in cut.stdout and "--cfg job" in cut.stdout
    assert not cut.stderr and max(map(len, cut.stdout.splitlines())) <= usage.WIDTH


def test_help_for_a_wrong_choice_says_so() -> None:
    with pytest.raises(ConfigError, match="model/nope"):
        usage.text(["model=nope"])
