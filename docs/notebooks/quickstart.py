# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A look into a trained StackedWAE
#
# `make train` leaves the five-level StackedWAE in `runs/quickstart`. Its second level codes the codes of the first,
# and so on: `z_5` has two numbers a digit. A WAE-MMD to compare it with takes a few minutes on two cores:
#
#     python -m dtrain model=wae_mmd data=digits trainer.max_steps=400 run.name=wae

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torchvision.utils import make_grid

import dtrain
from dtrain.data.shards import open_split

root = Path("../..")  # of the project, from docs/notebooks
model = dtrain.load(root / "runs/quickstart")
print(f"{type(model.algorithm).__name__}, step {model.step}, {model.levels} levels, priors: {model.priors}")


# %%
def show(images, columns, title):
    """Draws images [N, C, H, W] in [0, 1] in rows of `columns`."""
    rows = -(-len(images) // columns)
    plt.figure(figsize=(0.6 * columns, 0.6 * rows + 0.4))
    plt.imshow(make_grid(images.cpu(), columns, padding=1, pad_value=1).permute(1, 2, 0))
    plt.axis("off")
    plt.title(title, fontsize=9)
    plt.show()


# %% [markdown]
# ## Reconstructions from every level
#
# Above, digits that it has never seen; below, what is left of them after one level, two, up to five.

# %%
test = open_split(root / "shards/digits/test")
picked = torch.linspace(0, len(test) - 1, 12).long()  # they lie class after class
digits = torch.from_numpy(test.images[picked.numpy()]).permute(0, 3, 1, 2)  # uint8 [12, 1, 28, 28]
levels = [model.reconstruct(digits, level) for level in range(1, model.levels + 1)]
show(torch.cat([digits / 255, *(r.cpu() for r in levels)]), len(digits), "data, then levels 1 to 5")
for level, images in enumerate(levels, start=1):
    error = (images.cpu() - digits / 255).square().mean()
    size = model.encode(digits, level).shape[1]
    print(f"level {level}: {size:>2} numbers a digit, mean squared error {error:.4f}")

# %% [markdown]
# ## A walk through z_5
#
# The plane of the two deepest numbers, decoded through all five levels; the prior is a normal distribution around its
# middle.

# %%
side = 12
line = torch.linspace(-2, 2, side)
plane = torch.cartesian_prod(line, line)
show(model.decode(plane, model.levels), side, "z_5 from -2 to 2 in both directions")

# %% [markdown]
# ## Samples
#
# The n-th sample depends on the seed and on n alone: these are the ones of the run's `images/samples.png`.

# %%
show(model.sample(48, seed=0), 12, "samples")
show(model.interpolate(digits[:2], digits[-2:], steps=12).flatten(0, 1), 12, "between digits, in z_1")

# %% [markdown]
# ## Beside another model
#
# The same digits through both, and what both measured on the whole test split when their training ended.

# %%
other = dtrain.load(root / "runs/wae")
models = {"StackedWAE": model, "WAE-MMD": other}
pages = [m.reconstruct(digits).cpu() for m in models.values()]
show(torch.cat([digits / 255, *pages]), len(digits), "data, " + ", ".join(models))
show(torch.cat([m.sample(12).cpu() for m in models.values()]), 12, "samples: " + ", ".join(models))
for name, m in models.items():
    measured = m.metrics["test"]
    print(f"{name}: mse {measured['mse/level1']:.4f}, explained {measured['explained/level1']:.3f}")
