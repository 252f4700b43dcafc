"""What others made, or bad luck left, is refused or mended before anything starts, and none of it is executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain import compose as configs
from dtrain import run as runs
from dtrain.checkpoint import COMMITTED, CheckpointError, _seal, read_seal, steps
from dtrain.config import ConfigError
from dtrain.files import sha256
from dtrain.reader import METADATA, Reader
from tests.adversary import Adversary
from tests.harness import difference
from tests.runs import ROOT, execute, final_weights, freeze, status

SHORT = ("trainer.max_steps=4", "trainer.checkpoint.every=2")


class Payload:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, mark: Path, harmless: Any = None) -> None:
        self.mark, self.harmless = mark, harmless

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def reseal(path: Path) -> None:
    """As an attacker would: the digests of what is there now."""
    info = read_seal(path)
    info["files"] = {name: sha256(path / name) for name in info["files"]}
    (path / COMMITTED).write_bytes(_seal(info))


def executes(path: Path, mark: Path) -> None:
    (path / METADATA).write_bytes(pickle.dumps(Payload(mark)))


def executes_inside_a_table(path: Path, mark: Path) -> None:
    table = pickle.loads((path / METADATA).read_bytes())
    table.planner_data = Payload(mark)
    (path / METADATA).write_bytes(pickle.dumps(table))


def holds_bytes(path: Path, mark: Path) -> None:
    """DCP would unpickle them."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    table = pickle.loads((path / METADATA).read_bytes())
    table.state_dict_metadata[next(iter(table.state_dict_metadata))] = BytesStorageMetadata()
    (path / METADATA).write_bytes(pickle.dumps(table))


def points_elsewhere(path: Path, mark: Path) -> None:
    table = pickle.loads((path / METADATA).read_bytes())
    for place in table.storage_data.values():
        place.relative_path = f"../../{place.relative_path}"
    (path / METADATA).write_bytes(pickle.dumps(table))


def is_no_pickle(path: Path, mark: Path) -> None:
    (path / METADATA).write_bytes(b"nothing")


def is_empty(path: Path, mark: Path) -> None:
    (path / METADATA).write_bytes(b"")


def names_a_function(name: str) -> Any:
    def forge(path: Path, mark: Path) -> None:
        module, _, function = name.rpartition(".")
        (path / METADATA).write_bytes(b"c" + f"{module}\n{function}\n".encode() + b"(tR.")

    forge.__name__ = name
    return forge


def asks_for_an_attribute(path: Path, mark: Path) -> None:
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (path / METADATA).write_bytes(b"cbuiltins\ngetattr\n(" + name + b"S'__init__'\ntR.")


class PicklerOf3112(pickle.Pickler):
    """As Python 3.11 before 3.11.4 pickles the members of enumerations, Debian 12's for one."""

    def reducer_override(self, obj: Any) -> Any:
        return (getattr, (type(obj), obj.name)) if isinstance(obj, Enum) else NotImplemented


FUNCTIONS = (
    "builtins.eval", "builtins.exec", "builtins.getattr", "builtins.input", "os.system", "posix.system", "sys.exit",
    "subprocess.Popen", "torch.load", "torch.hub.load", "pickle.loads", "importlib.import_module", "shutil.rmtree",
    "dtrain.trainer.Trainer", "collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
)  # fmt: skip
FORGERIES = (
    executes, executes_inside_a_table, holds_bytes, points_elsewhere, is_no_pickle, is_empty, asks_for_an_attribute,
    *map(names_a_function, FUNCTIONS),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert execute(freeze(run, shards, *SHORT)) == 0
    return run


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda f: f.__name__)
def test_a_forged_checkpoint_is_refused_and_nothing_of_it_is_executed(
    trained: Path, tmp_path: Path, forge: Any
) -> None:
    path, mark = tmp_path / "step-00000004", tmp_path / "executed"
    shutil.copytree(steps(trained / "checkpoints")[-1], path)
    Reader(path).read_metadata()
    forge(path, mark)
    reseal(path)
    with pytest.raises(CheckpointError, match=METADATA):
        Reader(path).read_metadata()
    assert not mark.exists()


def test_a_table_that_an_older_python_has_written_is_read(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "step-00000004"
    shutil.copytree(steps(trained / "checkpoints")[-1], path)
    table = Reader(path).read_metadata()
    stored = pickle.loads((path / METADATA).read_bytes())
    with (path / METADATA).open("wb") as f:
        PicklerOf3112(f).dump(stored)
    assert b"getattr" in (path / METADATA).read_bytes()
    assert Reader(path).read_metadata().state_dict_metadata == table.state_dict_metadata


def test_a_forged_tensor_file_executes_nothing(trained: Path, tmp_path: Path, shards: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(trained, run)
    (run / "status.json").unlink()
    newest = steps(run / "checkpoints")[-1]
    (file,) = newest.glob("*.distcp")
    file.write_bytes(pickle.dumps(Payload(mark)) * 2000)
    reseal(newest)
    with pytest.raises(BaseException, match=r"(?i)weights.only|magic|corrupt|invalid|central directory|pickle"):
        execute(freeze(run, shards, *SHORT))
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        "builtins.input", "sys.exit", "os.system", "os.getcwd", "subprocess.run", "dtrain.run.run", "torch.nn.Linear",
        "pathlib.Path", "nowhere.Nothing", "dtrain.models.swae.Head", "dtrain.models.base.Terms", "SWAE", "",
        "..", ".a", "dtrain.models.swae", "tests.hostile.Missing",
    ],
)  # fmt: skip
def test_a_model_that_is_no_algorithm_is_refused(target: str, tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards, model={"_target_": target})
    with pytest.raises(ConfigError, match=r"model\._target_="):
        execute(file)
    assert not (tmp_path / "run").exists()


def test_evaluating_a_foreign_run_imports_only_what_the_caller_trusts(trained: Path, tmp_path: Path) -> None:
    run, module = tmp_path / "run", tmp_path / "evil.py"
    shutil.copytree(trained, run)
    module.write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.model = {"_target_": "evil.Model"}
    (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    command = [sys.executable, "-m", "dtrain.evaluate", str(run)]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "name it with --model evil" in done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '"text"', "\x00" * 40, '{"state": '])
@pytest.mark.parametrize("name", ["status.json", "environment.json"])
def test_a_damaged_small_file_counts_as_absent(
    trained: Path, tmp_path: Path, shards: Path, name: str, content: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / name).write_text(content)
    assert execute(freeze(run, shards, *SHORT)) == 0
    assert status(run)["state"] == "finished"
    assert difference(final_weights(run), weights_of(trained)) == 0


def weights_of(run: Path) -> dict[str, Tensor]:
    return final_weights(run)


@pytest.mark.parametrize("content", ["", "\x00" * 40, '{"kind": "train", "step": 3', "[]\n", "null\n"])
def test_damaged_metrics_cost_no_run(trained: Path, tmp_path: Path, shards: Path, content: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "status.json").unlink()
    (run / "metrics.jsonl").write_text(content)
    assert execute(freeze(run, shards, *SHORT)) == 0


class Wrong(Adversary):
    """One method of the evaluation is wrong."""

    broken = ""

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return x.flatten() if self.broken == "encode" else super().encode(x, level)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return super().decode(z, level)[:, :, 1:] if self.broken == "decode" else super().decode(z, level)

    def priors(self, condition: Tensor | None = None) -> Any:
        return {"normal": lambda noise: noise.normal("z", 99)} if self.broken == "priors" else super().priors()

    def validate(self, batch: Any) -> Any:
        return {"x": batch.missing} if self.broken == "validate" else super().validate(batch)


@pytest.mark.parametrize("broken", ["encode", "decode", "priors", "validate"])
def test_the_evaluation_is_tried_on_one_batch_before_anything_is_trained(
    tmp_path: Path, shards: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "broken", broken)
    file = freeze(tmp_path / "run", shards, model={"_target_": "tests.test_hostile.Wrong"})
    with pytest.raises(ConfigError, match=r"Wrong cannot be evaluated on one batch|images of another shape"):
        execute(file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["objective/nosuch", "mse/level9", "isc/digits/normal", "fid/imagenet/data"])
def test_a_metric_that_there_will_not_be_is_refused(tmp_path: Path, shards: Path, metric: str) -> None:
    file = freeze(tmp_path / "run", shards, "trainer.evaluate_every=5", f"trainer.checkpoint.best={metric}")
    with pytest.raises(ConfigError, match=rf"checkpoint\.best={metric}: the metrics are explained/level1"):
        execute(file)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_is_refused(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=1: StackedWAE compares the images of a batch"):
        execute(freeze(tmp_path / "run", shards, "trainer.batch_size=1"))


@pytest.mark.parametrize("small", ["valid", "test"])
def test_a_held_out_split_of_one_image_is_refused(tmp_path: Path, small: str) -> None:
    for split, count in (("train", 32), ("valid", 32), ("test", 32), (small, 1)):
        images = np.zeros((count, 6, 6, 1), dtype=np.uint8)
        source = array_source(images, np.zeros(count, np.int64), {"what": "0"}, None, split)
        write_split(tmp_path / "one" / split, source)
    with pytest.raises(ConfigError, match=rf"cannot be evaluated on one batch of .*{small}.*at least 2 rows"):
        execute(freeze(tmp_path / "run", tmp_path / "one"))
    assert not (tmp_path / "run").exists()


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        execute(freeze(tmp_path / "x", shards, f"run.dir={tmp_path / 'file' / 'run'}"))


def test_a_full_disk_at_the_start_is_refused(small_disk: Path, tmp_path: Path, shards: Path) -> None:
    run = small_disk / "run"
    (small_disk / "ballast").write_bytes(b"0" * shutil.disk_usage(small_disk).free)
    with pytest.raises(ConfigError, match="No space left"):
        execute(freeze(tmp_path / "x", shards, f"run.dir={run}"))
    (small_disk / "ballast").unlink()
    assert execute(freeze(tmp_path / "x", shards, f"run.dir={run}", "trainer.max_steps=1")) == 0


def test_an_official_weights_file_has_the_digest_in_its_name(tmp_path: Path) -> None:
    from dtrain.evaluate.extractors import _check_name

    file = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="6726825d"):
        _check_name(file)
    right = tmp_path / f"weights-{sha256(file)[:8]}.pth"
    file.rename(right)
    _check_name(right)


def test_extractor_weights_that_would_execute_code_are_refused(tmp_path: Path, shards: Path) -> None:
    weights = tmp_path / "inception.pth"
    torch.save({"a": Payload(tmp_path / "executed")}, weights)
    file = freeze(tmp_path / "run", shards, "evaluate.fidelity=inception", f"evaluate.inception_weights={weights}")
    with pytest.raises(ConfigError, match="its weights cannot be read"):
        execute(file)
    assert not (tmp_path / "executed").exists()


def test_a_run_folder_is_not_spoilt_by_foreign_files(trained: Path, tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "status.json").unlink()
    for name in ("checkpoints/.nfs000123", "checkpoints/notes.txt", "checkpoints/step-", ".nfs1"):
        (run / name).write_text("foreign")
    (run / "checkpoints" / "step-00000009").mkdir()
    assert execute(freeze(run, shards, *SHORT)) == 0
    assert runs._finished(run) and configs.load(run / "config.yaml")
    assert json.loads((run / "status.json").read_text())["step"] == 4
