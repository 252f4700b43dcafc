"""A pack: every member is what it would be alone, whatever becomes of the others, and whenever it is killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dtrain import compose, packed
from dtrain.alike import check_algorithm, check_alike, stacked, varying
from dtrain.config import Config, ConfigError
from dtrain.files import write_json
from dtrain.members import PackedUpdater
from dtrain.packed import Member
from dtrain.tensors import training_state
from dtrain.world import World
from launch.results import frame
from launch.store import SweepFolder
from tests.harness import Session, difference, make_config
from tests.processes import launch
from tests.runs import evaluations, execute, final_weights, freeze, metrics, status

EPS = "optim.default.eps=1e-4"  # else Adam makes full steps of the rounding of gradients that are 0


class Packed:
    """Members on random images in memory, as Session has one."""

    def __init__(self, configs: Sequence[Config]) -> None:
        check_alike(configs)
        self.sessions = [Session(c, World()) for c in configs]
        base = Session(configs[0], World()).algorithm
        self.updater = PackedUpdater(base, [s.algorithm for s in self.sessions], [s.updater for s in self.sessions])
        self.stream = self.batches()
        self.done = 0

    def batches(self) -> Iterator[Any]:
        seeds = [s.config.seed for s in self.sessions]
        streams = {s.config.seed: s.stream for s in self.sessions}
        while True:
            found = {seed: next(stream) for seed, stream in streams.items()}
            yield stacked([found[s] for s in seeds]) if len(found) > 1 else found[seeds[0]]

    def steps(self, count: int) -> list[dict[str, float]]:
        """Trains; returns the metrics of the last step by member."""
        size = self.sessions[0].config.trainer.batch_size
        for _ in range(count):
            for session in self.sessions:
                session.updater.read(World())
                session.updater.begin(self.done, self.done * size, 40 * size)
            self.updater.begin(self.done * size, 40 * size, measure=True)
            self.updater.base.step(self.stream, self.updater)
            self.done += 1
        return [s.updater.read(World()).values for s in self.sessions]


def state(session: Session) -> dict[str, Tensor]:
    """Weights, buffers and optimizer state."""
    return {k: v.clone() for k, v in training_state(session.algorithm, session.updater).items()}


MEMBERS: dict[str, list[list[str]]] = {
    "stackedwae": [
        ["model.lambda_rec=0.1"],
        ["model.lambda_rec=0.5", "model.lambda_match=0.2", "optim.default.betas=[0.5,0.9]"],
        ["optim.default.lr=3e-3", "optim.default.clip_norm=0.5", "optim.default.schedule=cosine"],
    ],
    "swae": [["seed=1"], ["model.lambda_adversary=1e-2", "model.code_weight=0.5"]],
    "wae_mmd": [["model.lambda_match=2", "optim.default.weight_decay=0.1"], ["optim.default.eps=1e-3"]],
    "learned_prior_aae_supervised": [["seed=3", "model.encoder_weight=2"], ["model.decoder_weight=3"]],
}


@pytest.mark.parametrize("model", MEMBERS)
def test_every_member_equals_its_run_alone(model: str) -> None:
    """Weights, running statistics, both moments, losses, norms and what is watched, after 20 steps in float64."""
    configs = [make_config(model, EPS, *own) for own in MEMBERS[model]]
    pack = Packed(configs)
    found = pack.steps(20)
    for config, session, values in zip(configs, pack.sessions, found, strict=True):
        alone = Session(config, World())
        expected = alone.steps(20)
        assert difference(state(alone), state(session)) < 1e-10
        assert values.keys() == expected.keys()
        for key, value in expected.items():
            assert values[key] == pytest.approx(value, rel=1e-7, abs=1e-12), key
    assert difference(state(pack.sessions[0]), state(pack.sessions[1])) > 1e-4  # they are not one run


def test_a_diverging_member_and_one_that_leaves_change_no_bit_of_the_others() -> None:
    rates = ("1e-3", "1e300", "2e-3")
    whole, undisturbed = ([make_config("stackedwae", f"optim.default.lr={r}") for r in (a, b, c)] for a, b, c in (
        rates, ("1e-3", "1e-3", "2e-3"),
    ))  # fmt: skip
    pack, calm = Packed(whole), Packed(undisturbed)
    pack.steps(3)
    assert not all(p.isfinite().all() for p in pack.sessions[1].algorithm.parameters())
    pack.updater.release(1)
    left = state(pack.sessions[1])
    pack.steps(3)
    calm.steps(6)
    assert all(torch.equal(v, left[k]) or v.isnan().any() for k, v in state(pack.sessions[1]).items())
    for i in (0, 2):
        assert difference(state(pack.sessions[i]), state(calm.sessions[i])) == 0


def test_averaged_weights_and_decoupled_decay_equal_those_of_the_run_alone() -> None:
    options = ("optim.default.name=adamw", "optim.default.ema=0.9", "optim.default.weight_decay=0.1", EPS)
    configs = [make_config("stackedwae", *options, f"optim.default.lr={lr}") for lr in ("1e-3", "3e-3")]
    pack = Packed(configs)
    pack.steps(10)
    for config, session in zip(configs, pack.sessions, strict=True):
        alone = Session(config, World())
        alone.steps(10)
        assert any(k.startswith("average.") for k in state(alone))
        assert difference(state(alone), state(session)) < 1e-10


def test_networks_of_other_structure_are_refused_by_their_attribute() -> None:
    members = [Session(make_config("swae", *own), World()).algorithm for own in ([], ["model.lambda_adversary=0"])]
    with pytest.raises(ConfigError, match=r"of different structure: SWAE\.adversarial is True, False"):
        varying(members)


@pytest.mark.parametrize(
    ("model", "own", "said"),
    [
        ("stackedwae", ["trainer.batch_size=8"], "trainer.batch_size"),
        ("swae", ["model.inner_steps=1"], "model.inner_steps"),
        ("swae", ["model.lambda_adversary=0"], "model.lambda_adversary: is not 0"),
        ("stackedwae", ["optim.default.name=adamw"], "optim.default.name"),
    ],
)
def test_other_structure_is_refused_by_its_key(model: str, own: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Packed([make_config(model), make_config(model, *own)])


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("stackedwae", ["trainer.precision=bf16"], "trainer.precision"),
        ("stackedwae", ["trainer.checkpoint.keep=1"], "trainer.checkpoint.keep"),
        ("stackedwae", ["optim.default.name=sgd"], "adam"),
        ("aeot", ["trainer.max_steps={autoencoder:2,potential:2}"], "stages"),
    ],
)
def test_what_no_pack_can_do_is_refused(model: str, options: list[str], said: str) -> None:
    config = make_config(model, *options)
    with pytest.raises(ConfigError, match=said):
        check_alike([config, config])
        check_algorithm(Session(config, World()).algorithm, config)


def configured(folder: Path, shards: Path, *overrides: str) -> Path:
    return freeze(folder, shards, "model.levels=[{latent:3,hidden:8},{latent:2,hidden:4}]", EPS, *overrides)


def two(folder: Path, shards: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [configured(folder / f"run{i}", shards, f"model.lambda_rec={r}") for i, r in enumerate((0.1, 0.5))]


def pack(files: Sequence[Path]) -> int:
    """The pack of frozen configurations, in this process."""
    cfgs = [compose.load(file) for file in files]
    return packed.run([compose.read(cfg) for cfg in cfgs], [OmegaConf.to_yaml(cfg) for cfg in cfgs])


def killed(files: Sequence[Path]) -> None:
    """Dies when the first member has saved step 20, and the second has not."""
    save = Member._save

    def hooked(self: Member, value: float | None = None) -> None:
        if self is self.others[1] and self.step == 20:
            self.others[0].checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, value)

    Member._save = hooked  # type: ignore[method-assign]
    pack(files)


def stages(shards: Path, folder: Path) -> list[Path]:
    """Runs of two members: of one pack; of a killed one that went on; of one that went on alone; alone."""
    whole, dead, apart = (two(folder / name, shards) for name in ("whole", "dead", "apart"))
    assert launch(1, pack, whole, timeout=600) == [0]
    launch(1, killed, dead, check=False, timeout=600)
    shutil.copytree(folder / "dead" / "run1", folder / "apart" / "run1")
    assert launch(1, pack, dead, timeout=600) == [0]
    assert launch(1, execute, apart[1], timeout=600) == [0]
    alone = two(folder / "alone", shards)
    assert [launch(1, execute, file, timeout=600) for file in alone] == [[0], [0]]
    return [whole[1], dead[1], apart[1], alone[1]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> list[Path]:
    return [file.with_suffix("") for file in stages(shards, tmp_path_factory.mktemp("packs"))]


def test_a_killed_pack_goes_on_bitwise_from_the_newest_step_that_all_members_have(runs: list[Path]) -> None:
    whole, dead, _, _ = runs
    for i in (0, 1):
        a, b = (final_weights(folder.parent / f"run{i}") for folder in (whole, dead))
        assert difference(a, b) == 0
    assert [line["step"] for line in metrics(dead, "train")] == list(range(5, 41, 5))
    assert status(dead)["starts"] == 2


def test_a_members_folder_is_that_of_a_run_alone_and_goes_on_alone(runs: list[Path]) -> None:
    whole, _, apart, alone = runs
    for folder in (whole, apart):
        assert difference(final_weights(folder), final_weights(alone)) < 1e-5
        for kind in ("train", "evaluation"):
            lines = zip(metrics(folder, kind), metrics(alone, kind), strict=True)
            for ours, theirs in lines:
                assert ours.keys() == theirs.keys()
                assert all(ours[k] == pytest.approx(v, rel=1e-3, abs=1e-5) for k, v in theirs.items() if told(k))
        names = {p.name for p in alone.iterdir()}
        assert {p.name for p in folder.iterdir()} == names
    assert status(whole)["state"] == "finished"


def test_the_table_of_a_packed_grid_is_that_of_runs_alone(runs: list[Path], tmp_path: Path) -> None:
    tables = []
    for last in (runs[0], runs[3]):
        path = tmp_path / last.parent.name
        path.mkdir()
        points = [
            {"index": i, "values": {"model.lambda_rec": r}, "signature": str(i), "run": str(last.parent / f"run{i}")}
            for i, r in enumerate((0.1, 0.5))
        ]
        write_json(path / "sweep.json", {"command": [], "time": 0.0, "keys": ["model.lambda_rec"], "points": points})
        tables.append(frame(SweepFolder.open(path)))
    ours, theirs = tables
    assert list(ours) == list(theirs) and list(ours["state"]) == list(theirs["state"]) == ["finished"] * 2
    numbers = [k for k in theirs.select_dtypes("number") if "/" in k or k == "objective"]
    assert len(numbers) > 5
    assert ours[numbers].to_numpy() == pytest.approx(theirs[numbers].to_numpy(), rel=1e-3, abs=1e-5, nan_ok=True)


def told(key: str) -> bool:
    """Whether the training decides a number, and not the machine."""
    return key not in ("kind", "split", "time", "step_s", "data_wait_s", "images_per_s", "memory_mb")


def test_a_member_that_diverges_fails_and_one_out_of_patience_ends_while_the_last_goes_on(
    tmp_path: Path, shards: Path
) -> None:
    judged = ("trainer.evaluate_every=2", "trainer.checkpoint.best=objective", "trainer.patience=2")
    rates = {"good": 1e-2, "wild": 1.0, "bad": 1e30}
    files = [
        configured(tmp_path / k, shards, f"optim.default.lr={lr}", "trainer.max_steps=12", *judged)
        for k, lr in rates.items()
    ]
    assert launch(1, pack, files, timeout=600) == [1]
    good, wild, bad = (status(tmp_path / k) for k in rates)
    assert (good["state"], wild["state"], bad["state"]) == ("finished", "finished", "failed")
    assert good["step"] == 12 and "not finite" in bad["error"]
    *_, last, final = evaluations(tmp_path / "wild")
    assert last["step"] < 12  # its patience was over
    assert all(line["images_per_s"] > 0 for k in rates for line in metrics(tmp_path / k, "train"))
    best = min(evaluations(tmp_path / "wild")[:-1], key=lambda line: line["objective"])
    assert final["step"] == best["step"] and final["objective"] == pytest.approx(best["objective"])
