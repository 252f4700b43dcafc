"""Hydra's multirun syntax becomes checked, distinct points; wrong ones are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dtrain.compose import compose, read
from dtrain.config import ConfigError
from launch.points import expand, make_points
from launch.settings import launcher_from, overridden, read_settings


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of models that can be built."""
    return tmp_path_factory.mktemp("known") / "checked"


def swept(key: str, *overrides: str) -> list[str]:
    return [next(o for o in line if o.startswith(f"{key}=")).partition("=")[2] for line in expand(list(overrides))]


def test_every_sweep_syntax_expands() -> None:
    assert swept("seed", "seed=3,1,2") == ["3", "1", "2"]
    assert swept("seed", "seed=range(0,6,2)") == ["0", "2", "4"]
    assert swept("model.lambda_rec", "model.lambda_rec=choice(.5,1)") == ["0.5", "1"]
    assert swept("evaluate.strengths", "evaluate.strengths=[4],[5]") == ["[4]", "[5]"]
    assert {"resident", "ffcv", "dali"} <= set(swept("loader", "loader=glob(*)"))
    product = expand(["seed=1,2", "model.lambda_rec=.1,.2"])
    assert product == [[f"seed={s}", f"model.lambda_rec={r}"] for s in (1, 2) for r in (0.1, 0.2)]


def test_the_grid_file_is_the_papers_25_pairs(shards: Path, known: Path) -> None:
    points, _ = make_points(["model=stackedwae", "lambda=grid", f"data.path={shards}"], 1, known)
    pairs = [tuple(p.values.values()) for p in points]
    assert pairs == [(rec, match) for rec in (0.01, 0.05, 0.1, 0.5, 1) for match in (1e-4, 1e-3, 1e-2, 1e-1, 1)]
    assert list(points[0].values) == ["model.lambda_rec", "model.lambda_match"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.lambda_rec=.1,.2", "seed=4"],
        ["experiment=quickstart", "trainer.max_steps=5,6"],
        ["loader=resident,ffcv", "trainer.batch_size=64"],
        ["optim.groups.level1.lr=.1,.2"],
        ["optim.default={lr:.1},{lr:.2,eps:1e-7}"],
    ],
)
def test_points_are_what_a_single_run_would_be(shards: Path, known: Path, overrides: list[str]) -> None:
    overrides = [*overrides, f"data.path={shards}", f"evaluate.digit_classifier={shards / 'none.pt'}"]
    lines = expand(overrides)
    single = {read(compose(line)).model_copy(update={"run": None}).model_dump_json() for line in lines}
    points = make_points(overrides, 1, known)[0]
    frozen = [read(OmegaConf.create(p.yaml)) for p in points]
    assert {c.model_copy(update={"run": None}).model_dump_json() for c in frozen} <= single
    assert all(
        c.run.name is not None and c.run.name.endswith(p.signature) for c, p in zip(frozen, points, strict=True)
    )


def test_points_that_are_the_same_run_collapse(shards: Path, known: Path) -> None:
    points, collapsed = make_points(["seed=1,2", "loader=resident,ffcv", f"data.path={shards}"], 1, known)
    assert (len(points), collapsed) == (2, 2)


def test_only_what_can_be_built_is_remembered(shards: Path, tmp_path: Path) -> None:
    known = tmp_path / "checked"
    make_points(["seed=1,2,3", f"data.path={shards}"], 1, known)
    _code, *models = known.read_text().split()
    assert len(models) == 1, "seeds share a model"
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    make_points([f"data.path={moved}"], 1, known)
    shutil.rmtree(moved)
    for _ in range(2):
        with pytest.raises(ConfigError, match="moved"):
            make_points([f"data.path={moved}"], 1, known)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,-1"], "point 1 (seed=-1): seed=-1: input should be greater"),
        (["model.lamda_rec=1,2"], "did you mean 'lambda_rec'"),
        (["model.lambda_rec=1,-1,abc"], "point 1 (model.lambda_rec=-1): model.lambda_rec=-1: input should be"),
        (
            ["model.levels.0.latent=4,0"],
            "point 1 (model.levels.0.latent=0): model.levels.0.latent=0: input should be greater",
        ),
        (["model=stackedwae,nosuch"], "point 1 (model=nosuch)"),
        (["trainer.batch_size=8,9"], "point 1 (trainer.batch_size=9)"),
        (["data.path=nowhere", "seed=1,2"], "nowhere"),
        (["seed=1,,2"], "seed=1,,2"),
        (["lambda=null", "seed=1,2"], "lambda=null"),
        (["run.dir=here", "seed=1,2"], "one folder for all points"),
        (["run.name='a/b'", "seed=1,2"], "may not hold"),
    ],
)
def test_a_wrong_point_is_named(shards: Path, known: Path, overrides: list[str], message: str) -> None:
    path = [] if any(o.startswith("data.path") for o in overrides) else [f"data.path={shards}"]
    with pytest.raises(ConfigError) as e:
        make_points([*overrides, *path], 2, known)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launcher.nodess=2", "nodess"),
        ("launcher.nodes=two", "launcher.nodes=two"),
        ("launcher.nodes=1,2", "cannot be swept"),
        ("launcher.nodes=0", "at least 1"),
        ("launcher.timeout_min=2", "at most half the time limit"),
        ("launcher=nosuch", "it has: default, gpu, multinode, preemptible"),
        ('launcher.comment="a\ntouch x"', "line breaks"),
        ('launcher.additional_parameters.a="b\nc"', "line breaks"),
        ("sweep.where=moon", "auto, slurm, local"),
        ("sweep.wiat=true", "wiat"),
        ("sweep=5", "sweep=5: sweep is a group of keys"),
        ("sweep.pack=many", "sweep.pack=many: a number of at least 1, or auto"),
        ("sweep.pack=0", "at least 1"),
    ],
)
def test_wrong_resources_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as e:
        read_settings([override])
    assert message in str(e.value)


def test_resources_come_from_the_file_and_the_command_line() -> None:
    settings = read_settings(["launcher=multinode", "launcher.partition=a100", "seed=1,2", "sweep.wait=true"])
    launcher = settings.launcher
    assert (launcher.ranks, launcher.gpus, launcher.tasks, launcher.partition) == (8, 8, 4, "a100")
    assert settings.overrides == ["seed=1,2"] and settings.sweep.wait
    assert launcher_from(launcher.public()) == launcher
    assert overridden(launcher, ["launcher.mem_gb=9"]).mem_gb == 9
    with pytest.raises(ConfigError, match="keeps its configuration"):
        overridden(launcher, ["seed=3"])
