"""The metrics of evaluations, called family/…: which way each is better. Without torch."""

from __future__ import annotations

import math

from dtrain.config import ConfigError

SMALLER = (
    "objective",
    "mse",
    "mse_symmetric",
    "inactive",
    "fid",
    "fid_blurred",
    "kid",
    "mind",
    "w2",
    "marginal_error",
)
LARGER = (
    "explained",
    "generative_use",
    "isc",
    "precision",
    "recall",
    "sharpness",
    "within3",
    "modes",
    "accuracy",
    "purity",
    "nmi",
    "hue_match",
)
# How sure a number is, or what it belongs to.
WITHOUT = (
    "isc_std",
    "distance_images",
    "mode_share",
    "transport_cost",
    "nearest",
    "confidence",
    "hue_chance",
    "critic_gap",
)
# Of the samples of one generative model, or of real images ("data"): the last part of the name says which.
OF_SAMPLES = (
    "isc",
    "isc_std",
    "fid",
    "fid_blurred",
    "kid",
    "mind",
    "precision",
    "recall",
    "sharpness",
    "distance_images",
    "confidence",
    "accuracy",
    "hue_match",
    "hue_chance",
)


def family(metric: str) -> str:
    """isc of isc/digits/normal."""
    return metric.partition("/")[0]


def member(metric: str) -> str:
    """digits/normal of isc/digits/normal; "" of a metric that is alone in its family."""
    return metric.partition("/")[2]


def by_prior(metric: str) -> tuple[str, str]:
    """(isc/digits, normal) of isc/digits/normal; the metric and "" where it is not of samples."""
    name, _, prior = metric.rpartition("/")
    return (name, prior) if family(metric) in OF_SAMPLES and name else (metric, "")


def larger_is_better(metric: str) -> bool:
    """The direction of a metric. Raises ConfigError for an unknown family, and for one without a direction."""
    name = family(metric)
    if name not in SMALLER + LARGER:
        known = ", ".join(sorted(SMALLER + LARGER))
        said = "has no better and worse" if name in WITHOUT else "is of no known family"
        raise ConfigError(f"{metric}: {said}; metrics are called family/…, with one of: {known}")
    return name in LARGER


def better(metric: str, value: float, than: float | None) -> bool:
    """Whether a value of the metric is better than another, or the first one. NaN is never better."""
    if than is None or math.isnan(than):
        return not math.isnan(value)
    return value > than if larger_is_better(metric) else value < than


def order(metric: str, value: float) -> tuple[bool, float]:
    """A key that sorts values of the metric from the best to the worst; NaN comes last."""
    return math.isnan(value), -value if larger_is_better(metric) else value


def table(values: dict[str, float]) -> list[str]:
    """The values as the lines of a table: a row for each member, a column for each family that has members."""
    rows: dict[str, dict[str, float]] = {}
    for metric, value in values.items():
        if member(metric):
            rows.setdefault(member(metric), {})[family(metric)] = value
    columns = list(dict.fromkeys(f for row in rows.values() for f in row))
    width = max((len(name) for name in rows), default=0)
    lines = [" " * (width + 2) + "".join(f"  {c:>12}" for c in columns)] if rows else []
    for name, row in rows.items():
        lines.append(f"  {name:<{width}}" + "".join(f"  {_cell(row.get(c)):>12}" for c in columns))
    return lines


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
