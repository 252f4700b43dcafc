"""python -m dtrain.export RUN --out DIR: a trained model without its run: safetensors, configuration and model card.

dtrain.load(DIR) reads it. --to torch-export adds encoder.pt2 and decoder.pt2, which need torch alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from dtrain import compose as configs
from dtrain.checkpoint import folder_of
from dtrain.config import ConfigError
from dtrain.files import read_json
from dtrain.metrics import table
from dtrain.results import last_evaluations
from dtrain.tensors import model_state
from dtrain.trained import WEIGHTS, Trained, load

KEPT = ("code", "versions", "data", "facts")  # of environment.json; the rest is of the machine


class Encoder(nn.Module):
    """Float images [B, C, H, W] in [0, 1] to codes of level 1."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.algorithm = trained.algorithm

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.algorithm.value_range
        return self.algorithm.encode(low + (high - low) * x)


class Decoder(nn.Module):
    """Codes of level 1 to float images [B, C, H, W] in [0, 1]."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.algorithm = trained.algorithm

    def forward(self, z: Tensor) -> Tensor:
        low, high = self.algorithm.value_range
        return ((self.algorithm.decode(z) - low) / (high - low)).clamp(0, 1)


def export(run: Path, out: Path, licence: str, modules: tuple[str, ...] = (), programs: bool = False) -> None:
    """Writes DIR all at once. Raises ConfigError for a folder that exists, or a run without weights."""
    if out.exists():
        raise ConfigError(f"--out {out}: exists; choose another folder")
    trained = load(run, "cpu", modules)
    folder, work = folder_of(run), out.with_name(f".{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in model_state(trained.algorithm).items()}
    save_file(state, work / WEIGHTS, {"step": str(trained.step)})
    cfg = configs.load(folder / "config.yaml")
    cfg.run.dir, cfg.run.root = None, "runs"
    (work / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    environment = read_json(folder / "environment.json")
    kept = {k: environment[k] for k in KEPT if k in environment}
    (work / "environment.json").write_text(json.dumps(kept, indent=1) + "\n")
    lines = last_evaluations(folder)
    (work / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work / "README.md").write_text(card(trained, kept.get("data", {}), licence))
    if programs:
        _programs(trained, work)
    work.rename(out)


def card(trained: Trained, data: dict[str, str], licence: str) -> str:
    """The model card, in Markdown."""
    config, facts = trained.config, trained.config.data
    parameters = sum(p.numel() for p in trained.algorithm.parameters())
    digests = "\n".join(f"- {split}: sha256 {digest}" for split, digest in data.items())
    numbers = "\n".join(table(trained.metrics["test"]))
    return f"""# {config.model["_target_"].rpartition(".")[2]} on {facts.name}

{parameters:,} parameters, step {trained.step:,}, images of {" x ".join(map(str, facts.image_shape))} in [0, 1].
Licence: {licence}.

    import dtrain
    model = dtrain.load("<this folder>")
    model.sample(64), model.reconstruct(images)

Generative models: {", ".join(trained.priors) or "none"}. Conditioned on: {trained.algorithm.condition or "nothing"}.

## Data

{facts.name}, prepared by `{facts.prepare}`:

{digests or "- not recorded"}

## Metrics

On the test split, measured once, at the end of the training. A column is a family of metrics, which
docs/evaluation.md of dtrain explains; the extractor of Inception Scores and distances is a part of the row's name.
Samples: {config.evaluate.fidelity_samples:,}, seed {config.evaluate.seed}.

{numbers or "not measured"}
"""


def _programs(trained: Trained, folder: Path) -> None:
    """encoder.pt2 and decoder.pt2, by torch.export, for batches of any size."""
    x = torch.rand(2, *trained.config.data.image_shape)
    with torch.no_grad():
        z = trained.algorithm.encode(x)
    for name, net, example in (("encoder", Encoder(trained), x), ("decoder", Decoder(trained), z)):
        program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / f"{name}.pt2")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dtrain.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder, or a checkpoint in it")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--to", choices=["torch-export"], help="also programs that need torch alone")
    parser.add_argument("--licence", default="not stated", help="of the weights, for the model card")
    parser.add_argument("--model", action="append", default=[], help="module of a model outside dtrain.models")
    given = parser.parse_args()
    try:
        export(given.run, given.out, given.licence, tuple(given.model), given.to is not None)
    except ConfigError as e:
        print(f"dtrain.export: {e}", file=sys.stderr)
        return 2
    print(f"{given.run} in {given.out}: dtrain.load({str(given.out)!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
