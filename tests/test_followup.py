"""Runs that follow others: a longer one continues a shorter one exactly, a new one begins with another's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor

import dtrain
from dtrain import compose as configs
from dtrain.build import build_algorithm, facts, open_data
from dtrain.checkpoint import COMMITTED, steps
from dtrain.compose import read
from dtrain.config import ConfigError, run_dir, signature
from dtrain.followup import Earlier, extended
from dtrain.init import Start, starts
from dtrain.models.base import DataFacts
from dtrain.run import run
from dtrain.world import World
from tests.harness import LEVELS, SHAPE, difference, make_config
from tests.processes import launch
from tests.runs import evaluations, execute, final_weights, freeze, metrics, status
from tests.test_stages import at_step

EXTEND = "run.extend=true"
EMA = "optim.default.ema=0.9"
STAGES = {"_target_": "tests.stages.TwoStage"}


def composed(root: Path, shards: Path, *overrides: str) -> Any:
    """A run as the command line composes it, whose folder has the name of its signature."""
    return configs.compose([
        LEVELS, f"data.image_shape={list(SHAPE)}", f"data.path={shards}", f"run.root={root}", "trainer.batch_size=16",
        "trainer.log_every=5", "trainer.checkpoint.every=10", "evaluate.samples=4", "evaluate.rows=4",
        "evaluate.grid=2", "evaluate.points=20", EMA, *overrides,
    ])  # fmt: skip


def found(cfg: Any) -> Earlier | None:
    """What the run would continue, were it started."""
    config = read(cfg)
    splits = open_data(config)
    content = {split.path.name: split.content for split in splits}
    algorithm = build_algorithm(config, facts(splits[0]))
    return extended(run_dir(config), config, algorithm, len(splits[0]), content, main=True)


def die(file: Path) -> int:
    at_step(23)
    return execute(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Tensor]:
    """The final weights of an undisturbed run of 30 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert execute(freeze(folder, shards, "trainer.max_steps=30", EMA)) == 0
    return final_weights(folder)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A finished run of 15 steps."""
    cfg = composed(tmp_path_factory.mktemp("runs"), shards, "trainer.max_steps=15")
    assert run(read(cfg), OmegaConf.to_yaml(cfg)) == 0
    return run_dir(read(cfg))


def test_a_longer_run_continues_a_shorter_one_in_a_folder_of_its_own_and_leaves_it_as_it_is(
    short: Path, shards: Path, whole: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f: f.read_bytes() for f in short.rglob("*") if f.is_file() and f.name != "running.lock"}
    plain = composed(short.parent, shards, "trainer.max_steps=30")
    assert found(plain) is None
    line = f"{short} differs only in its length, trainer.max_steps=15: run.extend=true continues it from step 15"
    assert line in capsys.readouterr().out
    cfg = composed(short.parent, shards, "trainer.max_steps=30", EXTEND)
    assert run(read(cfg), OmegaConf.to_yaml(cfg)) == 0
    assert run(read(plain), OmegaConf.to_yaml(plain)) == 0
    long = run_dir(read(plain))
    assert f"{long} is finished" in capsys.readouterr().out, "it is the run of this length, however it began"
    long.with_suffix(".yaml").write_text(OmegaConf.to_yaml(cfg))
    assert difference(final_weights(long), whole) == 0
    assert [line["step"] for line in metrics(long, "train")] == [5, 10, 15, 20, 25, 30]
    assert [line["step"] for line in evaluations(long)] == [15, 30]
    (event,) = metrics(long, "extended")
    assert event["message"] == f"extended: the steps up to 15 are those of {short}, which had trainer.max_steps=15"
    assert {f: f.read_bytes() for f in before} == before, "the shorter run stays what it is"
    shutil.rmtree(long)


def test_killed_in_the_extension_it_goes_on_in_the_folder_that_run_dir_names(
    tmp_path: Path, short: Path, shards: Path, whole: dict[str, Tensor]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    with pytest.raises(ConfigError, match=r"holds this run with trainer.max_steps=15: run.extend=true continues it"):
        execute(freeze(folder, shards, "trainer.max_steps=30", EMA))
    file = freeze(folder, shards, "trainer.max_steps=30", EMA, EXTEND)
    assert launch(1, die, file, check=False) == ["died"]
    assert status(folder)["state"] == "running"
    assert execute(file) == 0
    assert difference(final_weights(folder), whole) == 0
    assert len(metrics(folder, "extended")) == 1
    assert read(configs.load(folder / "config.yaml")).trainer.max_steps == 30


def test_what_cannot_be_continued_says_why(
    tmp_path: Path, short: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ("trainer.max_steps=40", EXTEND)
    with pytest.raises(ConfigError, match=r"no run beside .* differs from it in nothing but its length"):
        found(composed(short.parent, shards, *longer, "seed=2"))
    with pytest.raises(ConfigError, match=r"it has had 15 steps already, more than 3"):
        found(composed(short.parent, shards, "trainer.max_steps=3", EXTEND))
    there = tmp_path / "there"
    shutil.copytree(short, there)
    here = f"run.dir={there}"
    assert found(composed(tmp_path, shards, *longer, here)) is not None
    for cosine, message in (("null", "the cosine schedule of level1 ends with the training"), ("900", None)):
        own = ("optim.default.schedule=cosine", f"optim.default.decay_images={cosine}", here)
        (there / "config.yaml").write_text(
            OmegaConf.to_yaml(composed(tmp_path, shards, "trainer.max_steps=15", *own))
        )
        if message is None:
            assert found(composed(tmp_path, shards, *longer, *own)) is not None
            continue
        with pytest.raises(ConfigError, match=message):
            found(composed(tmp_path, shards, *longer, *own))
        assert found(composed(tmp_path, shards, longer[0], *own)) is None
        assert f"it cannot be continued, since {message}" in capsys.readouterr().out
    (there / "owner.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is a sweep's point, whose result must stay"):
        found(composed(tmp_path, shards, *longer, *own))
    shutil.rmtree(there / "checkpoints")
    with pytest.raises(ConfigError, match=r"cannot be continued: it has no checkpoint that is whole"):
        found(composed(tmp_path, shards, *longer, *own))


def test_epochs_of_stages_are_steps_and_only_the_stage_under_way_is_extended(tmp_path: Path, shards: Path) -> None:
    """The first stage's cosine has ended with it."""

    def file(*lengths: int, extend: str = EXTEND) -> Path:
        given = f"trainer.max_epochs={{autoencoder: {lengths[0]}, generator: {lengths[1]}}}"
        cosine, size = "optim.groups.autoencoder.schedule=cosine", "trainer.batch_size=20"
        return freeze(tmp_path / "run", shards, given, "trainer.max_steps=null", cosine, size, extend, model=STAGES)

    assert execute(file(1, 1, extend="run.extend=false")) == 0
    assert status(tmp_path / "run")["max_steps"] == status(tmp_path / "run")["step"] == 5 + 5, "96 images by 20"
    assert [m["step"] for m in metrics(tmp_path / "run", "stage")] == [0, 5]
    with pytest.raises(ConfigError, match=r"its stage autoencoder has ended after 5 steps"):
        found(configs.load(file(2, 2)))
    longer = found(configs.load(file(1, 2)))
    assert longer is not None and longer.step == 10
    own = OmegaConf.load(file(1, 2))
    own.optim.groups.generator = {"schedule": "cosine"}
    old = OmegaConf.merge(own, {"trainer": {"max_epochs": {"generator": 1}}})
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(old))
    with pytest.raises(ConfigError, match=r"the cosine schedule of generator ends with the training"):
        found(own)


def test_one_length_is_set_and_one_of_the_command_line_replaces_the_files() -> None:
    def of(*given: str) -> Any:
        return read(configs.compose(list(given)))

    quick = of("experiment=quickstart", "trainer.max_epochs=3")
    assert (quick.trainer.max_steps, quick.trainer.max_epochs) == (None, 3)
    assert quick.trainer.epoch(images=3600, batches_per_step=2) == 15
    assert signature(of("trainer.max_epochs=3")) != signature(of("trainer.max_epochs=4"))
    with pytest.raises(ConfigError, match=r"trainer.max_steps=4 and trainer.max_epochs=3: set one of"):
        of("trainer.max_epochs=3", "trainer.max_steps=4")
    with pytest.raises(ConfigError, match=r"no length: set one of"):
        of("trainer.max_epochs=null", "trainer.max_steps=null")
    with pytest.raises(ConfigError, match=r"trainer.max_epochs=3: give each stage its own: autoencoder, potential"):
        build_algorithm(make_config("aeot", "trainer.max_epochs=3"), DataFacts((1, 24, 24), images=96))


def stored(path: Path) -> dict[str, Tensor]:
    """Everything in a checkpoint."""
    table: dict[str, Any] = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state: dict[str, Any] = {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in table.items()}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def test_sharded_a_run_begins_with_the_averaged_weights_of_another_once(
    tmp_path: Path, short: Path, shards: Path
) -> None:
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(short, source)
    given = dict(dtrain.load(source).algorithm.named_parameters())
    own = ("seed=3", f"init.from={source}", "init.groups=[level1,level3]", EMA, "trainer.strategy=fsdp")
    file = freeze(folder, shards, "trainer.max_steps=1", "trainer.log_every=1", *own)
    assert launch(2, execute, file) == [0, 0]
    first = stored(steps(folder / "checkpoints")[0])
    for group, paths in dtrain.load(source).algorithm.groups.items():
        names = [k for k in given if k.startswith(tuple(f"{p}." for p in paths))]
        same = all(torch.equal(first[f"model.{k}"], given[k]) for k in names)
        assert same == (group != "level2") and names, group
        assert all(torch.equal(first[f"average.{k}"], first[f"model.{k}"]) for k in names)
    (noted,) = json.loads((folder / "environment.json").read_text())["init"]
    assert noted["groups"] == ["level1", "level3"] and noted["checkpoint"].endswith(
        "source/checkpoints/step-00000015"
    )
    (event,) = metrics(folder, "init")
    assert event["message"] == f"the weights of level1, level3 are those of {noted['checkpoint']}"
    last = final_weights(folder)
    (folder / "status.json").unlink()
    seal = source / "checkpoints" / "step-00000015" / COMMITTED
    seal.write_text("of other weights")
    with pytest.raises(ConfigError, match=r"began with other weights than .*step-00000015 now holds"):
        execute(file)
    shutil.rmtree(source)
    assert execute(file) == 0, "what it began with is in its own checkpoints"
    assert difference(final_weights(folder), last) == 0


def beginning(shards: Path, *overrides: str) -> list[Start]:
    config = read(composed(shards, shards, *overrides))
    return starts(config, build_algorithm(config, DataFacts(SHAPE, images=96)), World())


def test_weights_that_are_not_there_or_do_not_fit_are_refused(tmp_path: Path, short: Path, shards: Path) -> None:
    (start,) = beginning(shards, f"init.from={short}")
    assert start.groups == ("level1", "level2", "level3")
    (start,) = beginning(shards, f"init.from={short}/checkpoints/step-00000010")
    assert start.checkpoint.name == "step-00000010"
    other = LEVELS.replace("hidden:8", "hidden:9")
    (start,) = beginning(shards, f"init.from={short}", other)
    assert start.groups == ("level1", "level2"), "those that fit"
    for overrides, message in (
        ((f"init.from={tmp_path / 'none'}",), r"init.from=.*none: that is no run folder with checkpoints"),
        ((f"init.from={short}/checkpoints/step-00000007",), r"step-00000007: it is damaged"),
        (
            (f"init.from={short}", "init.groups=[level9]"),
            "this model has no group level9, but level1, level2, level3",
        ),
        (
            (f"init.from={short}", "init.groups=[level3]", other),
            r"group level3 does not fit: .* is \[8, 4\] there, \[9",
        ),
        (("init.groups=[level1]",), "set init.from"),
    ):
        with pytest.raises(ConfigError, match=message):
            beginning(shards, *overrides)

    def name(path: str) -> str:
        return signature(read(composed(shards, shards, f"init.from={path}")))

    assert name("runs/a") == name("/elsewhere/a") != name("runs/b") != name("runs/a/checkpoints/step-00000010")
