"""Names that no folder can have, secrets from the environment, numbers without sense: refused before any start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dtrain.__main__ import main as train
from dtrain.compose import compose, load, read
from dtrain.config import ConfigError
from launch import points, settings
from launch.sweep import main as sweep
from tests.launch.support import StubChecker

Command = Callable[[list[str]], int]
NAMES = {
    "empty": "",
    "blanks": "'  '",
    "dot": ".",
    "dots": "'..'",
    "above": "../../x",
    "absolute": "/tmp/x",
    "below": "a/b",
    "long": "x" * 300,
    "long in bytes": f"'{'é' * 120}'",
    "line break": '"a\nb"',
    "escape": '"a\x1b[2Jb"',
    "delete": '"a\x7f"',
    "bidi": '"a\u202eb"',
}
SECRETS = (
    "run.name='${oc.env:SECRET}'",
    "data.path='${oc.env:SECRET}'",
    "data.path='/x/${oc.env:SECRET}/y'",
    "data.path='${oc.env:SECRET,default}'",
    "data.path='${oc.env:UNSET_SECRET,default}'",
    "data.path='${oc.env:UNSET_SECRET}'",
    "data.path='${ oc.env : SECRET }'",
    "data.path='${oc.decode:${oc.env:SECRET}}'",
    "data.prepare='${data.path}' data.path='${oc.env:SECRET}'",
    "+optim.groups.level1.lr='${oc.env:SECRET}'",
    "evaluate.manipulate='[a,${oc.env:SECRET}]'",
    "++model.a='oc.env' data.path='${${model.a}:SECRET}'",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start from, with a secret in the environment, and nothing that builds models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.delenv("UNSET_SECRET", raising=False)
    monkeypatch.setattr(points, "Checker", StubChecker)
    monkeypatch.setenv("PATH", str(tmp_path))  # what is not refused finds no cluster
    monkeypatch.setattr("launch.sweep.submit", None)
    return tmp_path


def refused(
    command: Command, arguments: list[str], key: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> str:
    """What the command says as it refuses its arguments; nothing has been written."""
    assert command(arguments) == 2
    said = capsys.readouterr()
    assert key in said.err and "Traceback" not in said.err
    assert "hunter2" not in said.err + said.out and not list(folder.iterdir())
    return said.err


@pytest.mark.parametrize("command", [train, sweep], ids=["run", "sweep"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_name_that_no_folder_can_have(
    command: Command, name: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    refused(command, [f"run.name={name}"], "run.name=", capsys, folder)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_sweeps_name_that_no_folder_can_have(name: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused(sweep, [f"sweep.name={name}", "seed=1,2"], "sweep.name=", capsys, folder)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_one_wrong_name_among_a_sweeps_points(name: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused(sweep, [f"run.name=good,{name or repr('')}"], "1 of 2 points cannot be run", capsys, folder)


@pytest.mark.parametrize("key", ["run.root", "run.dir"])
def test_an_empty_folder_is_not_the_present_one(key: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused(train, [f"{key}="], f"{key}=", capsys, folder)
    refused(sweep, ["sweep.dir=", "seed=1,2"], "sweep.dir", capsys, folder)


@pytest.mark.parametrize("name", ["a", "x" * 200, "a b", "$(touch x)", "-rf", "...", "ünïcode", "a.b"])
def test_other_names_are_as_good_as_any(name: str) -> None:
    assert read(compose([f"run.name='{name}'"])).run.name == name


@pytest.mark.parametrize("command", [train, sweep], ids=["run", "sweep"])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_value_from_the_environment_is_written_nowhere(
    command: Command, secret: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    overrides = secret.replace(" data.path", "\0data.path").split("\0")
    said = refused(command, overrides, "", capsys, folder)
    assert "oc.env" in said and "would be written to the run's config.yaml" in said


def test_nor_is_one_of_a_frozen_configuration(folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_text("run: {name: '${oc.env:SECRET}'}\n")
    with pytest.raises(ConfigError, match=r"oc\.env"):
        read(load(file))


def test_the_environment_can_be_read_again_afterwards() -> None:
    from omegaconf import OmegaConf

    with pytest.raises(ConfigError):
        read(compose(["data.path='${oc.env:SECRET}'"]))
    assert OmegaConf.create({"a": "${oc.env:SECRET}"}).a == "hunter2"


@pytest.mark.parametrize("command", [train, sweep], ids=["run", "sweep"])
@pytest.mark.parametrize(
    "override", ["run.name='${nothing}'", "data.path='${hydra:runtime.cwd}'", "data.name='${run.nothing}'"]
)
def test_what_stands_for_nothing_is_named(
    command: Command, override: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    refused(command, [override], override.partition("=")[0].partition(".")[2], capsys, folder)


@pytest.mark.parametrize(
    "override",
    [
        "launcher.gpus_per_node=-1", "launcher.tasks_per_node=0", "launcher.tasks_per_node=-2", "launcher.nodes=-1",
        "launcher.timeout_min=-5", "launcher.timeout_min=0", "launcher.cpus_per_task=0", "launcher.mem_gb=-1",
        "launcher.gpus_per_task=-1", "launcher.cpus_per_gpu=0", "launcher.signal_delay_s=-1",
        "launcher.max_num_timeout=-1", "launcher.array_parallelism=0", "sweep.pilot=-5", "sweep.pilot=0",
        "sweep.pilot=nan", "sweep.pilot=inf", "sweep.parallel=0", "sweep.parallel=-3", "trainer.timeout=-1",
        "trainer.timeout=0", "trainer.timeout=nan",
    ],
)  # fmt: skip
def test_numbers_without_sense(override: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused(sweep, [override, "seed=1,2"], override.partition("=")[0], capsys, folder)


def test_resources_are_not_read_from_the_environment(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused(sweep, ["launcher.comment='${oc.env:SECRET}'", "seed=1,2"], "oc.env", capsys, folder)
    with pytest.raises(ConfigError, match="at least 0"):
        settings.overridden(settings.Launcher(), ["launcher.gpus_per_node=-1"])
