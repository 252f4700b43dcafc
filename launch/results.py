"""The results of a sweep: every point's numbers, and those of seeds together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtrain.config import ConfigError
from dtrain.files import parse_lines
from dtrain.metrics import LARGER, SMALLER, family, larger_is_better, order
from dtrain.results import last_evaluated, metrics_on, thinned
from launch.codes import kept_runs
from launch.standing import State, states
from launch.store import SweepFolder, read_status

if TYPE_CHECKING:
    import pandas as pd

VALUES = 4000  # of all points' curves of a metric together


@dataclass(frozen=True)
class Row:
    """A point and the numbers of its result, {} if there is none yet.

    metrics: on the validation split, which all is judged by. test: on the test split. log: metrics.jsonl, `thinned`.
    """

    state: State
    metrics: dict[str, float]
    test: dict[str, float]
    log: bytes = b""

    @property
    def numbers(self) -> dict[str, float]:
        """All of them, those on the test split as test/<metric>."""
        return self.metrics | {f"test/{m}": v for m, v in self.test.items()}


@dataclass(frozen=True)
class Setting:
    """The points that differ by their seed only. mean and std (of the sample; 0 for one) of the objective.

    means, stds: of every number of Row.numbers; NaN where a seed's is, or where a seed has none.
    """

    values: dict[str, Any]
    rows: list[Row]
    mean: float
    std: float
    means: dict[str, float]
    stds: dict[str, float]


def frame(sweep: SweepFolder) -> pd.DataFrame:
    """A row for each point, in order.

    Its number, the values of the swept keys, state, step, restarts, code, hours (by the clock), images_per_s, the
    metrics of its result on valid, those on test as test/<metric>, and run, its folder. NaN where there is none yet.
    Raises ConfigError for a damaged sweep.
    """
    return frame_of(read_rows(sweep), sweep.keys)


def frame_of(rows: list[Row], keys: list[str]) -> pd.DataFrame:
    """`frame` of points that were read before."""
    import pandas as pd  # here, since jobs that submit and follow do without

    about = []
    for row in rows:
        s = row.state
        facts = {"index": s.entry.index, **s.entry.values, "state": s.name, "step": s.status.get("step", 0)}
        speed = {"hours": s.hours, "images_per_s": s.status.get("images_per_s")}
        about.append(facts | {"restarts": s.restarts, "code": s.code} | speed)
    left = pd.DataFrame(about).astype(dict.fromkeys(keys, object) | {"hours": float, "images_per_s": float})
    found = pd.DataFrame([row.numbers for row in rows], dtype=float)
    found = found[sorted(found.columns, key=lambda m: (m.startswith("test/"), m))]
    return pd.concat([left, found], axis=1).assign(run=[str(row.state.entry.run) for row in rows])


def read_rows(sweep: SweepFolder) -> list[Row]:
    """Every point with the evaluations of its result, whose metrics a later one adds to."""
    return [_row(state, len(sweep.points)) for state in states(sweep.points)]


def curve_length(points: int) -> int:
    """The most values that a point's curve of a metric has, of so many points."""
    return min(300, max(20, VALUES // points))


def _row(state: State, points: int) -> Row:
    log = thinned(state.entry.run, 4 * curve_length(points))
    # An evaluation in mid-training is no result.
    lines = last_evaluated(parse_lines(log)) if state.name in ("finished", "kept") else []
    return Row(state, metrics_on("valid", lines), metrics_on("test", lines), log)


def kept_rows(sweep: SweepFolder) -> list[Row]:
    """The results of other code that sweep.code=rerun has kept, the newest of each point and code."""
    found = [State(entry, "kept", read_status(entry.run), None) for entry in kept_runs(sweep.points)]
    newest = {(s.code, s.entry.index): s for s in found if s.status.get("state") == "finished"}
    return [_row(state, len(sweep.points)) for state in newest.values()]


def kept_settings(rows: list[Row], objective: str) -> list[Setting]:
    """As `grouped` for the kept results that have the objective, each code's by themselves."""
    by_code: dict[str, list[Row]] = {}
    for row in rows:
        if objective in row.metrics:
            by_code.setdefault(row.state.code, []).append(row)
    return [setting for same in by_code.values() for setting in grouped(same, objective)]


def default_objective(rows: list[Row]) -> str:
    """objective, Eq. 14, if the results have it; else the first of their metrics with a better and a worse."""
    found = [row.metrics for row in rows if row.metrics]
    shared = [m for m in found[0] if all(m in other for other in found)] if found else ["objective"]
    judged = [m for m in shared if family(m) in SMALLER + LARGER]
    if not judged:
        known = ", ".join(sorted({m for metrics in found for m in metrics}))
        raise ConfigError(f"--objective: no metric that is better or worse is in all results; they have {known}")
    return "objective" if "objective" in judged else judged[0]


def check_metric(option: str, metric: str) -> None:
    """ConfigError, which begins with the option, for a metric that points cannot be judged by."""
    try:
        larger_is_better(metric)
    except ConfigError as e:
        raise ConfigError(f"{option} {e}") from e


def grouped(rows: list[Row], objective: str) -> list[Setting]:
    """Finished points, seeds together, best mean first. Raises ConfigError for an unknown objective."""
    import pandas as pd

    check_metric("--objective", objective)
    rows = [row for row in rows if row.metrics]
    for row in rows:
        if objective not in row.metrics:
            raise ConfigError(f"--objective {objective}: the runs have {', '.join(sorted(row.metrics))}")
    settings: dict[Any, list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(without_seed(row).items()), []).append(row)
    if not rows:
        return []
    numbers = pd.DataFrame([row.numbers for same in settings.values() for row in same], dtype=float)
    groups = numbers.groupby([n for n, same in enumerate(settings.values()) for _ in same])
    # pandas leaves NaN out of a mean, but a seed that has diverged must show.
    whole = groups.count().eq(groups.size(), axis=0)
    means, stds = groups.mean().where(whole), groups.std().where(whole)
    stds.loc[groups.size() == 1] = 0.0
    found = [
        Setting(dict(key), same, mean[objective], std[objective], mean, std)
        for (key, same), mean, std in zip(
            settings.items(), means.to_dict("records"), stds.to_dict("records"), strict=True
        )
    ]
    return sorted(found, key=lambda s: order(objective, s.mean))


def swept_axes(sweep: SweepFolder, heat: list[str] | None) -> list[str] | None:
    """The heat map's two keys: the asked ones, else the two swept ones besides the seed."""
    keys = [k for k in sweep.keys if k != "seed"]
    wrong = [k for k in heat or [] if k not in keys]
    if wrong:
        raise ConfigError(f"--heat {wrong[0]}: the sweep varies {', '.join(keys) or 'nothing but the seed'}")
    if heat and heat[0] == heat[1]:
        raise ConfigError(f"--heat {heat[0]} {heat[1]}: rows and columns must be two keys")
    return heat or (keys if len(keys) == 2 else None)


def axis_values(sweep: SweepFolder, axes: list[str]) -> dict[str, list[Any]]:
    """Each axis's values, numbers in order, missing points' included."""
    found = {k: list(dict.fromkeys(e.values[k] for e in sweep.points)) for k in axes}
    return {k: sorted(v) if all(isinstance(x, int | float) for x in v) else v for k, v in found.items()}


def without_seed(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.state.entry.values.items() if k != "seed"}
