"""The validation metrics of a run against its epochs (000, Fig. 4)."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dtrain.evaluate.evaluation import Evaluation
from dtrain.files import read_lines
from dtrain.metrics import family, member

PANELS = ("objective", "mse", "isc", "fid", "kid", "hue_match")


def curves(evaluation: Evaluation) -> dict[str, plt.Figure]:
    """A panel for each family in metrics.jsonl; nothing for a single evaluation. Stages follow one another."""
    lines = read_lines(evaluation.site.folder / "metrics.jsonl")
    by_step = {line["step"]: line for line in lines if line["kind"] == "evaluation" and line.get("split") == "valid"}
    found = [by_step[step] for step in sorted(by_step)]
    if len(found) < 2:
        return {}
    metrics = [k for k in found[-1] if family(k) in PANELS and member(k)]
    panels = {f: [m for m in metrics if family(m) == f] for f in PANELS if any(family(m) == f for m in metrics)}
    figure, axes = plt.subplots(1, len(panels) or 1, figsize=(4.2 * (len(panels) or 1), 3.4), squeeze=False)
    epochs = _epochs(found)
    for ax, (name, shown) in zip(axes[0], panels.items(), strict=False):
        for metric in shown:
            ax.plot(epochs, [float(line.get(metric, "nan")) for line in found], marker=".", label=member(metric))
        ax.set(title=name, xlabel="epoch", yscale="log" if name in ("objective", "mse") else "linear")
        ax.legend(fontsize=8)
    figure.suptitle("Validation metrics")
    figure.tight_layout()
    return {"curves": figure}


def _epochs(lines: list[dict[str, Any]]) -> list[float]:
    """Of every evaluation, those of earlier stages added."""
    before, last, found = 0.0, 0.0, []
    for line in lines:
        if line["epoch"] < last:
            before += last
        last = line["epoch"]
        found.append(before + last)
    return found
