"""Makes the golden curves: python -m tests.golden.curves rewrites the files beside it.

Float64, one thread, random images: the numbers depend on the mathematics and little else.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dtrain.world import World
from tests.harness import Session, make_config

FOLDER = Path(__file__).parent
STEPS = 20
CURVES = {
    "stackedwae": ("stackedwae", ()),
    "stackedwae_sigma": (
        "stackedwae",
        ("model.schedule=svhn", "++model.lambda_sigma=2.5", "++model.lambda_sigma_decay=0.83"),
    ),
    "adversary": ("adversary", ("optim.default.ema=0.9", "optim.default.schedule=cosine")),
    "swae": ("swae", ("model.inner_steps=2",)),
    "ae": ("ae", ()),
    "wae_mmd": ("wae_mmd", ()),
    "wae_mmd_uniform": ("wae_mmd", ("model.prior=uniform",)),
    "wae_gan": ("wae_gan", ("model.density_trick=true",)),
    "wae_hierarchical": ("wae_hierarchical", ()),
    "vae": ("vae", ("model.likelihood=gaussian",)),
    "vae_bernoulli": ("vae", ()),
    "vampprior": ("vampprior", ("model.warmup_images=160",)),
    "ali": ("ali", ()),
    "alice": ("alice", ("model.code_cycle_weight=0.5",)),
    "aeot": ("aeot", ()),
    "aae": ("aae", ("model.gaussian_encoder=true",)),
    "learned_prior_aae_supervised": ("learned_prior_aae_supervised", ("model.encoder_weight=2",)),
    "learned_prior_aae_unsupervised": ("learned_prior_aae_unsupervised", ("model.feature_error=sum",)),
    "learned_prior_aae_text": ("learned_prior_aae_text", ("model.perceptual=false",)),
    "eight_gaussians": ("eight_gaussians", ("model.problem_size=8", "model.lambda_gradient=0.1")),
}


def curve(name: str) -> list[dict[str, float]]:
    """Every metric of every step, then the held-out terms and the size of every running statistic."""
    model, overrides = CURVES[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = Session(make_config(model, *overrides), World())
        return [session.steps(1) | session.held_out() for _ in range(STEPS)]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for name in CURVES:
        lines = [json.dumps(values, sort_keys=True) for values in curve(name)]
        (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
