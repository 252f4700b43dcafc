"""Parts of benchmarks/gpu.py: training by the papers' settings for the time that is left, in ordinary run folders."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from benchmarks.gpu_part import Rows, Unfinished
from benchmarks.gpu_speed import TINY
from dtrain import compose as configs
from dtrain import packed
from dtrain.__main__ import main as dtrain
from dtrain.files import STOPPED, read_json, read_lines

if TYPE_CHECKING:
    from benchmarks.gpu import Given

REC, MATCH = (0.01, 0.05, 0.1, 0.5, 1.0), (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # the grid of paper 001
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "celeba10": ("trainer.evaluate_every=2000", "trainer.checkpoint.every=1000"),
    "swae_celeba": ("evaluate.manipulate=[]",),  # not all faces come with attributes
    "mnist5": ("trainer.evaluate_every=10000",),
}
SHORT = (
    "trainer.batch_size=16", "trainer.max_steps=2", "trainer.log_every=1",
    "evaluate.points=20", "evaluate.samples=4", "evaluate.rows=2", "evaluate.grid=2",
)  # fmt: skip


def overrides(experiment: str, model: str, data: Path | None, run: Path, tiny: bool) -> list[str]:
    """Of a run in its folder."""
    small = (*TINY[model], *SHORT) if tiny else ()
    where = (f"data.path={data}", f"run.dir={run}", "run.report=false")
    return [f"experiment={experiment}", *EXPERIMENTS[experiment], *small, *where]


def stands(run: Path) -> dict[str, Any]:
    """How far a run has come, how fast, and its last evaluation."""
    status = read_json(run / "status.json")
    found = {k: status.get(k) for k in ("state", "step", "max_steps")}
    lines = read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    for kind, names in (("train", ("images_per_s", "memory_mb")), ("evaluation", ("objective",))):
        if own := [line for line in lines if line["kind"] == kind]:
            found |= {name: round(own[-1][name], 4) for name in names if name in own[-1]}
    return found


def judge(code: int, where: str) -> None:
    """What a command's exit code means for the part."""
    if code == STOPPED:
        raise Unfinished("the same command goes on with it")
    if code:
        raise RuntimeError(f"exit code {code}: {where} says why")


def one(given: Given, experiment: str) -> Rows:
    """A run on faces, as by python -m dtrain."""
    model = {"celeba10": "stackedwae_celeba"}.get(experiment, experiment)
    run = given.out / "runs" / experiment
    code = dtrain(overrides(experiment, model, given.faces, run, given.tiny))
    yield {"case": experiment, **stands(run)}
    judge(code, "the part's log")


def grid(given: Given) -> Rows:
    """The pairs of weights on MNIST in one process, as by python -m dtrain.packed."""
    pairs, files = list(product(REC, MATCH))[: 2 if given.tiny else None], []
    for rec, match in pairs:
        run = given.out / "runs" / f"mnist_{rec:g}_{match:g}"
        cfg = configs.compose([
            *overrides("mnist5", "stackedwae", given.mnist, run, given.tiny), f"model.lambda_rec={rec}",
            f"model.lambda_match={match}",
        ])  # fmt: skip
        files.append(run.parent / f"{run.name}.yaml")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(OmegaConf.to_yaml(cfg))
    code = packed.main([str(f) for f in files])
    for file in files:
        yield {"case": file.stem, **stands(file.with_suffix(""))}
    judge(code, "the part's log")
