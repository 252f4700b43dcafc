"""The held-out metrics of a run against its epochs (000, Fig. 4)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dtrain.files import read_lines

PANELS = ("objective", "mse", "isc", "fid", "kid")


def draw(metrics: Path, steps_per_epoch: float, file: Path) -> None:
    """A panel for each kind of metric in metrics.jsonl; nothing is drawn for a single evaluation."""
    by_step = {line["step"]: line for line in read_lines(metrics) if line["kind"] == "evaluation"}
    if len(by_step) < 2:
        return
    steps = sorted(by_step)
    panels: dict[str, dict[str, list[float]]] = {}
    for key in by_step[steps[-1]]:
        kind, _, name = key.partition("/")
        if name and kind.partition("_")[0] in PANELS and not kind.startswith("isc_std"):
            panels.setdefault(kind, {})[name] = [float(by_step[s].get(key, "nan")) for s in steps]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False)
    for ax, (kind, curves) in zip(axes[0], panels.items(), strict=True):
        for name, values in curves.items():
            ax.plot([s / steps_per_epoch for s in steps], values, marker=".", label=name)
        ax.set(title=kind, xlabel="epoch", yscale="log" if kind in ("objective", "mse") else "linear")
        ax.legend(fontsize=8)
    figure.suptitle("Held-out metrics")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
