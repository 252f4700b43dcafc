"""The commands of the README, as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrain import compose as configs
from dtrain.checkpoint import steps
from dtrain.config import run_dir
from dtrain.run import emulated
from tests.harness import LEVELS, SHAPE, difference
from tests.runs import ROOT, call, evaluations, execute, final_weights, freeze, metrics, status

TINY = (LEVELS, f"data.image_shape={list(SHAPE)}", "trainer.batch_size=16")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("lamda.rec=1", ["'lamda'", "did you mean 'lambda'"]),
        ("trainer.batch_size=-3", ["trainer.batch_size=-3", "greater than 0"]),
        ("trainer.max_steps=many", ["trainer.max_steps='many'", "integer"]),
        ("trainer.strategy=magic", ["trainer.strategy='magic'", "'ddp' or 'fsdp'"]),
        ("model.lambda_rec=-1", ["model.lambda_rec=-1", "greater than or equal to 0"]),
        ("model.lambda_rec=inf", ["model.lambda_rec=inf", "finite"]),
        ("model.lambda_rce=1", ["'lambda_rce'", "did you mean 'lambda_rec'"]),
        ("optim.lr=1", ["'lr'", "did you mean optim.default.lr? optim has: default, groups"]),
        ("trainer.epochs=3", ["'epochs'", "did you mean trainer.max_epochs?"]),
        ("model=nope", ["model/nope", "stackedwae"]),
        ("model.levels.1.hiden=8", ["model.levels.1.hiden=8", "unknown key", "hidden"]),
        ("model.levels.9.hidden=8", ["model.levels", "0 to 4"]),
        ("model.levels=[{hidden: 8, latent: 2, units: 3}]", ["model.levels.0.units=3", "allowed: hidden, latent"]),
        ("model.levels=[{kernel: 3, latent: [2, 3, 3]}]", ["model.levels.0.filters: is not set"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0", "greater than 0"]),
        ("optim.groups.level1.lrr=1", ["optim.groups.level1.lrr", "allowed: name, lr"]),
        ("optim.groups.level9.lr=1", ["optim.groups.level9", "level1"]),
        ("data.path=nowhere", ["data.path=nowhere", "python -m data_prep digits"]),
        ("loader.workerz=1", ["workerz"]),
        ("loader.memory_map=5", ["loader.memory_map=5", "true or false"]),
        ("trainer.micro_batches=2", ["trainer.micro_batches=2", "MMD", "allowed: 1"]),
        ("-m", ["launch/sweep.py"]),
        ("=", ["="]),
    ],
)
def test_a_wrong_key_type_or_value_is_refused_at_once(
    override: str, named: list[str], tmp_path: Path, shards: Path
) -> None:
    data = [] if override.startswith("data.") else [f"data.path={shards}", f"data.image_shape={list(SHAPE)}"]
    result = call(*data, f"run.root={tmp_path / 'runs'}", override)
    assert result.returncode == 2
    for text in named:
        assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(tmp_path: Path, shards: Path) -> None:
    result = call(f"data.path={shards}", f"run.root={tmp_path / 'runs'}", "trainer.batch_size=33", world=2)
    assert result.returncode != 0
    assert "trainer.batch_size=33" in result.stderr and "2 x 1 = 2" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_continues_where_it_was_and_then_says_that_it_is_finished(tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards)
    first = call("--config", file, world=2)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "run"
    for name in ("samples", "reconstructions", "interpolation", "paths", "latents"):
        assert (run / "images" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert first.stdout.startswith(f"run folder {run}: a new run\n")
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0}).Reload()
    assert {"images/samples", "images/latents"} <= set(events.Tags()["images"])
    for name in ("samples", "latents"):
        (shown,) = events.Images(f"images/{name}")
        logged, saved = Image.open(BytesIO(shown.encoded_image_string)), Image.open(run / "images" / f"{name}.png")
        assert shown.step == 40 and logged.size == (shown.width, shown.height) and max(logged.size) <= 1000
        saved.thumbnail((1000, 1000))
        assert ImageChops.difference(logged, saved.convert("RGB")).getbbox() is None
    facts = json.loads((run / "environment.json").read_text())
    assert facts["world_size"] == 2 and facts["versions"]["torch"] and facts["git"]
    assert configs.read(configs.load(run / "config.yaml")).trainer.max_steps == 40
    line = metrics(run, "train")[-1]
    for key in (
        "loss/all/x",
        "loss/all/mmd",
        "lr/level1",
        "grad_norm/all/level3",
        "images_per_s",
        "data_wait_s",
        "memory_mb",
    ):
        assert key in line, key
    (held_out,), (tested,) = evaluations(run), evaluations(run, "test")
    assert tested.keys() == held_out.keys() and tested["objective"] != held_out["objective"]
    assert held_out["objective"] == pytest.approx(sum(v for k, v in held_out.items() if k.startswith("objective/")))
    assert {"mse/level1", "mse/level2", "mse/level3"} <= held_out.keys()
    assert status(run)["state"] == "finished"

    again = call("--config", file)
    assert again.returncode == 0 and "is finished" in again.stdout
    assert again.stdout.startswith(f"run folder {run}: finished, step 40 of 40\n")

    # As if the job had died while evaluating: the same command picks the run up, in another world size. And as if an
    # earlier version had started it, which did not know every key.
    for old in (file, run / "config.yaml"):
        lines = old.read_text().splitlines(keepends=True)
        old.write_text("".join(line for line in lines if not line.startswith(("  patience:", "  fidelity:"))))
    (run / "status.json").unlink()
    for path in steps(run / "checkpoints")[1:]:
        path.rename(path.with_suffix(".incomplete"))
    third = call("--config", file)
    assert third.returncode == 0, third.stderr
    assert f"{run}: continuing from step 30" in third.stdout
    assert [line["step"] for line in metrics(run, "train")] == list(range(5, 41, 5))
    assert [line["restart"] for line in metrics(run, "start")] == [False, True]
    assert evaluations(run)[-1]["objective"] == pytest.approx(held_out["objective"], rel=1e-3)


def test_another_run_is_not_mixed_into_a_folder(tmp_path: Path, shards: Path) -> None:
    assert execute(freeze(tmp_path / "run", shards, "trainer.max_steps=1")) == 0
    result = call("--config", freeze(tmp_path / "run", shards, "trainer.max_steps=1", "model.lambda_rec=0.5"))
    assert result.returncode == 2
    assert "model.lambda_rec: 0.1 there, 0.5 here" in result.stderr


def test_names_carry_a_hash_where_the_run_is_not_the_experiments_own() -> None:
    def name(*overrides: str) -> str:
        return run_dir(configs.read(configs.compose(list(overrides)))).name

    assert name("experiment=quickstart") == "quickstart"
    assert name("experiment=quickstart", "trainer.log_every=3") == "quickstart"
    shorter = name("experiment=quickstart", "trainer.max_steps=20")
    assert shorter.startswith("quickstart-") and len(shorter) == len("quickstart-") + 10
    assert shorter == name("trainer.max_steps=20", "experiment=quickstart")
    assert name("model=stackedwae", "data=digits") == "stackedwae-digits"


def test_one_and_two_processes_have_the_same_loss_curve(tmp_path: Path, shards: Path) -> None:
    curves = []
    for world in (1, 2):
        run = tmp_path / f"run{world}"
        overrides = (*TINY, f"data.path={shards}", f"run.dir={run}", "trainer.max_steps=20", "trainer.log_every=1")
        result = call("experiment=quickstart", *overrides, world=world)
        assert result.returncode == 0, result.stderr
        curves.append([line["loss/all"] for line in metrics(run, "train")])
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_a_command_says_its_folder_before_torch_loads() -> None:
    code = """
import io, sys
import dtrain.__main__ as program

class Said(io.StringIO):
    def write(self, text):
        sys.exit(f"{text}, torch loaded: {'torch' in sys.modules}")

sys.stdout = Said()
program.main(["experiment=quickstart", "run.root=none"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.strip() == "run folder none/quickstart: a new run, torch loaded: False"


def on_a_terminal(run: Path, *overrides: str) -> str:
    """What python -m dtrain.evaluate shows on standard error, a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "dtrain.evaluate", str(run), *overrides], stderr=theirs, stdout=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
            while chunk := os.read(ours, 4096):
                shown += chunk
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def evaluate(run: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dtrain.evaluate", str(run), *overrides],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_evaluation_at_any_time_and_with_other_settings(tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    assert execute(freeze(run, shards)) == 0
    before = (run / "images" / "samples.png").read_bytes()
    drawn = (run / "images" / "reconstructions.png").read_bytes()
    result = evaluate(run, "evaluate.samples=9", "evaluate.manipulate=[]")
    assert result.returncode == 0, result.stderr
    assert "valid split at step 40: objective" in result.stdout
    assert (run / "images" / "samples.png").read_bytes() != before
    assert configs.load(run / "config.yaml").evaluate.samples == 4
    assert (run / "images" / "reconstructions.png").read_bytes() != drawn, "of the split that was measured"
    first, tested, second = metrics(run, "evaluation")
    assert [line["split"] for line in (first, tested, second)] == ["valid", "test", "valid"]
    assert second["objective"] == pytest.approx(first["objective"])
    shown = on_a_terminal(run, "evaluate.split=test")
    assert re.search(r"loading.*held out.*reconstructions.*\d+/\d+.*batches", shown, re.DOTALL), shown
    assert (run / "images" / "reconstructions.png").read_bytes() == drawn
    assert [line["objective"] for line in evaluations(run, "test")] == pytest.approx([tested["objective"]] * 2)
    for folder, override, named in (
        (tmp_path / "no", "evaluate.samples=9", "config.yaml"),
        (run, "evaluate.sample=9", "unknown key; allowed: split, sampler, samples"),
        (run, "evaluate.split=train", "evaluate.split='train': input should be 'valid' or 'test'"),
        (run, "seed=2", "only evaluate.<key>=<value>"),
    ):
        refused = evaluate(folder, override)
        assert refused.returncode == 2 and named in refused.stderr and "Traceback" not in refused.stderr


CONVOLUTIONAL = {
    "_target_": "dtrain.models.stackedwae.StackedWAE",
    "levels": [
        {"kernel": 3, "filters": 4, "resample": True, "latent": [2, 3, 3]},
        {"kernel": 3, "filters": 4, "resample": False, "latent": [1, 3, 3]},
    ],
    "lambda_rec": 0.5, "lambda_match": 1.0, "schedule": "svhn", "symmetric": True,
}  # fmt: skip


def test_a_convolutional_run_in_channels_last_and_bf16_continues_exactly(tmp_path: Path, shards: Path) -> None:
    """Weights with other strides go through checkpoints like any."""
    run = tmp_path / "run"
    file = freeze(run, shards, "trainer.channels_last=true", "trainer.precision=bf16", model=CONVOLUTIONAL)
    assert execute(file) == 0
    assert {p.name for p in (run / "images").iterdir()} == {
        "samples.png", "nearest.png", "between_samples.png", "reconstructions.png", "paths.png", "latents.png",
    }  # fmt: skip
    whole = final_weights(run)
    (run / "status.json").unlink()
    last = steps(run / "checkpoints")[-1]
    last.rename(last.with_suffix(".incomplete"))
    assert execute(file) == 0
    assert difference(final_weights(run), whole) == 0


def test_channels_last_is_refused_for_sharded_weights(tmp_path: Path, shards: Path) -> None:
    overrides = ("trainer.channels_last=true", "trainer.strategy=fsdp")
    result = call("--config", freeze(tmp_path / "run", shards, *overrides, model=CONVOLUTIONAL), world=2)
    assert result.returncode != 0
    assert "channels_last=true" in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("precision", "capabilities", "expected"),
    [
        ("bf16", {"avx2": True, "avx512_bf16": False}, True),
        ("bf16", {"avx512_bf16": True}, False),
        ("bf16", {"neon": True, "bf16": True}, False),
        ("fp16", {"avx512_bf16": True}, True),
        ("fp32", {}, False),
    ],
)
def test_a_precision_that_the_cpu_must_emulate_is_known(
    precision: str, capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert emulated(precision, torch.device("cpu")) is expected
    assert not emulated(precision, torch.device("cuda"))
