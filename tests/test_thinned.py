"""The few lines of a long metrics.jsonl that a sweep's table and curves are made of."""

from __future__ import annotations

import json
from pathlib import Path

from dtrain.files import parse_lines, read_lines
from dtrain.hours import hours
from dtrain.report.series import curves
from dtrain.results import LINE, last_evaluated, last_evaluations, thinned


def long_log(path: Path) -> None:
    """40,000 steps of two starts, evaluated every 5,000, with an event before the second and a line being written."""
    lines = [{"kind": "start", "time": 100.0}]
    for step in range(1, 40_001):
        if step == 20_011:
            lines += [{"kind": "skip", "step": step - 1, "message": "x"}, {"kind": "start", "time": 9e6}]
        lines.append(
            {"kind": "train", "step": step, "time": 100.0 + step + 1e7 * (step > 20_010), "loss/a": 1 / step}
        )
        if step % 5000 == 0:
            lines.append({"kind": "evaluation", "split": "valid", "step": step, "time": 0.0, "mse": float(step)})
    lines.append({"kind": "evaluation", "split": "test", "step": 40_000, "time": 0.0, "mse": 2.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')


def test_a_long_log_keeps_its_evaluations_its_hours_and_evenly_spread_values(tmp_path: Path) -> None:
    long_log(tmp_path / "metrics.jsonl")
    whole, few = read_lines(tmp_path / "metrics.jsonl"), parse_lines(thinned(tmp_path, 100))
    assert 100 < len(few) < 130
    assert [m for m in few if m["kind"] == "evaluation"] == [m for m in whole if m["kind"] == "evaluation"]
    assert last_evaluated(few) == last_evaluations(tmp_path) == whole[-2:]
    assert abs(hours(few, {})[1] - hours(whole, {})[1]) < 1e-9
    curve = curves([m for m in few if m["kind"] == "train"], 1000)["loss/a"]
    assert curve["x"][0] < 500 and curve["x"][-1] == 40_000
    assert max(b - a for a, b in zip(curve["x"], curve["x"][1:], strict=False)) < 500


def test_a_short_log_is_kept_whole_and_one_without_training_too(tmp_path: Path) -> None:
    assert thinned(tmp_path, 10) == b""
    line = b'{"kind": "evaluation", "split": "valid", "step": 1}\n'
    for count in (2, LINE):
        (tmp_path / "metrics.jsonl").write_bytes(line * count + b"cut")
        assert thinned(tmp_path, 10) == line * count
