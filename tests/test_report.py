"""The report of a run and of a sweep: what is in it, and that it works in a browser and runs nothing foreign."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.files import append_line, read_json, write_json
from dtrain.report.__main__ import main
from dtrain.report.differences import choices
from dtrain.report.series import curves
from dtrain.report.sweep import sweep_page
from tests.harness import SHAPE
from tests.runs import execute, freeze

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")
# Sets window.harmed wherever a page takes it for more than a name.
EVIL = '"><img src=x onerror="harmed=1"><script>harmed=1<!--\u2028'
EVIL_END = "</script><script>harmed=1</script>" + EVIL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plane`, a run with a plane of codes, attributes and its report, and `path`, whose codes have three numbers.

    The report of `path` cannot be written; `said` is what it says of that.
    """
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        images = rng.integers(0, 256, (32, *SHAPE[1:], 1), dtype=np.uint8)
        source = array_source(images, np.arange(32) % 10, {"attribute_names": ["Hat", "Bald"]}, None, split)
        source.arrays["attributes"] = np.stack([np.arange(32) % 2, np.zeros(32)], 1).astype(np.uint8)
        write_split(folder / "shards" / split, source, ("npy",))
    assert execute(freeze(folder / "plane", folder / "shards", "run.report=true", "trainer.evaluate_every=20")) == 0
    one = ("model.levels=[{latent:3,hidden:8}]", "trainer.max_steps=20", "optim.default.lr=0.03", "run.report=true")
    (folder / "path" / "report.html").mkdir(parents=True)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert execute(freeze(folder / "path", folder / "shards", *one)) == 0
    (folder / "said").write_text(said.getvalue())
    return folder


def data(page: Path) -> Any:
    """What the page's scripts read."""
    text = page.read_text()
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_a_run_ends_with_its_report(folder: Path) -> None:
    page = folder / "plane" / "report.html"
    assert page.stat().st_size < 6e6  # of which the plotting library has 4.8
    found = data(page)
    assert {c["kind"] for c in found["controls"]} == {"plane", "slider"}
    assert found["controls"][1]["rows"][0] == "Hat, image 0"  # Bald is nobody
    losses = next(p for p in found["training"] if p["title"].startswith("loss/"))
    assert losses["traces"][0]["x"] == list(range(5, 41, 5))
    text = page.read_text()
    assert text.count("data:image/png;base64,") >= len(list((folder / "plane" / "images").glob("*.png")))
    assert "step-00000040" in text and "trainer.max_steps" in text


def test_what_goes_wrong_with_the_report_is_not_the_runs(folder: Path) -> None:
    path = folder / "path"
    assert "no report.html (IsADirectoryError: " in (folder / "said").read_text()
    assert read_json(path / "status.json")["state"] == "finished" and not list(path.glob(".report*"))


def test_without_weights_it_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "plane", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "has no checkpoint that verifies" in (tmp_path / "page.html").read_text()
    assert data(tmp_path / "page.html")["controls"] == []


def test_without_data_the_plane_is_still_there(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "plane", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(folder / "shards"), str(tmp_path / "none")))
    assert main([str(tmp_path / "run")]) == 0
    assert [c["kind"] for c in data(tmp_path / "run" / "report.html")["controls"]] == ["plane"]
    assert "held-out images is left out: data.path" in (tmp_path / "run" / "report.html").read_text()


def test_nothing_that_a_run_brings_is_executed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "plane", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("dtrain.models.stackedwae.StackedWAE", "os.system"))
    (tmp_path / "run" / "images" / "samples.png").write_text("<svg onload=harmed>")
    os.mkfifo(tmp_path / "run" / "images" / "latents2.png")
    assert main([str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "of the module os: if you trust it" in text and "is no PNG file, or too large" in text


def test_what_is_neither_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "name runs/<name>, or sweeps/<id>" in capsys.readouterr().err


def test_curves_keep_their_ends_and_leave_out_what_is_damaged() -> None:
    lines: list[dict[str, Any]] = [{"step": s, "a": s * 2.0, "time": 1.0} for s in range(101)]
    lines += [
        {"step": "x", "a": 1.0},
        {"step": 102, "a": [1]},
        {"step": -1, "a": 0},
        {"a": 5},
        {"step": 200, "a": "nan"},
    ]
    a = curves(lines, most=11)["a"]
    assert a["x"][:2] == [0, 10] and a["x"][-1] == 200 and len(a["x"]) <= 12
    assert a["y"][1] == 20 and math.isnan(a["y"][-1])
    assert "time" not in curves(lines, most=11)


def test_only_our_own_files_are_compared_with() -> None:
    words = ["experiment=quickstart", "model=vae", "experiment=../../etc/passwd", "seed=1", "run.name=a b"]
    assert choices(words) == ["experiment=quickstart", "model=vae"]


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Path:
    """A grid of two seeds, whose runs are copies of `plane` with an objective of their own; one point has failed."""
    path, points = folder / "sweeps" / "grid", []
    settings = [(rec, text, seed) for rec in (10.0, 9.0) for text in ("a", EVIL_END) for seed in (0, 1)]
    for index, (rec, text, seed) in enumerate(settings):
        run = folder / "runs" / (f"{EVIL}{index}")
        run.mkdir(parents=True)
        values = {"model.lambda_rec": rec, "data.name": text, "seed": seed}
        points.append({"index": index, "values": values, "signature": str(index), "run": str(run)})
        if index == len(settings) - 1:
            write_json(run / "status.json", {"state": "failed", "error": EVIL_END, "time": time.time() - 1e4})
            continue
        write_json(run / "status.json", {"state": "finished", "step": 40, "max_steps": 40})
        shutil.copyfile(folder / "plane" / "environment.json", run / "environment.json")
        for line in map(json.loads, (folder / "plane" / "metrics.jsonl").read_text().splitlines()):
            append_line(run / "metrics.jsonl", line | ({"objective": rec + seed} if "objective" in line else {}))
    path.mkdir(parents=True)
    keys = ["model.lambda_rec", "data.name", "seed"]
    write_json(path / "sweep.json", {"command": ["-m", EVIL_END], "time": 0.0, "keys": keys, "points": points})
    assert main([str(path)]) == 0
    return path / "report.html"


def test_an_open_page_is_renewed_while_points_are_under_way(sweep: Path, tmp_path: Path) -> None:
    status = read_json(sweep.parent / "sweep.json")["points"][0]["run"] + "/status.json"
    before, page = read_json(Path(status)), tmp_path / "page.html"
    write_json(Path(status), {"state": "running", "step": 1, "max_steps": 40, "time": time.time()})
    assert sweep_page(sweep.parent, page, every=20) and '<meta http-equiv="refresh" content="20">' in page.read_text()
    write_json(Path(status), before)
    assert main([str(sweep.parent), "--out", str(page), "--watch"]) == 0  # returns: nothing is under way
    assert 'http-equiv="refresh"' not in page.read_text()


def test_a_damaged_sweep_is_said(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = read_json(sweep.parent / "sweep.json")
    content["points"][0]["values"]["data.name"] = ["a"]
    write_json(tmp_path / "sweep.json", content)
    assert main([str(tmp_path)]) == 2 and "sweep.json is damaged" in capsys.readouterr().err
    assert main([str(sweep.parent), "--objective", "fid"]) == 2
    assert "--objective fid: the runs have" in capsys.readouterr().err


@dataclass
class Browser:
    """Chromium: opens pages from disk, and notes what went wrong and what was asked for."""

    context: Any
    errors: list[str] = field(default_factory=list)

    def open(self, file: Path) -> Any:
        page = self.context.new_page()
        page.set_default_timeout(180_000)  # ms: other tests may have the processors
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else self.errors.append(r.url)
        )
        page.goto(file.as_uri())
        return page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*root, "--enable-unsafe-swiftshader"], timeout=180_000
        )
        yield program
        program.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    """A fresh window; the test fails if a page had an error, or asked for anything but the file."""
    browser = Browser(chromium.new_context(viewport={"width": 1280, "height": 900}))
    yield browser
    browser.context.close()
    assert browser.errors == []


def shown(page: Any) -> list[str]:
    """The images that the latent explorer shows."""
    return page.eval_on_selector_all("canvas.shown", "all => all.map(c => c.toDataURL())")


@needs_browser
def test_curves_are_drawn_and_smoothed(folder: Path, browser: Browser) -> None:
    page = browser.open(folder / "plane" / "report.html")
    page.locator("#training .js-plotly-plot .scatterlayer path.js-line").first.wait_for()
    values = "document.querySelector('#training .js-plotly-plot').data[0].y"
    before = page.evaluate(values)
    page.locator("#smoothing").fill("0.9")
    after = page.evaluate(values)
    assert after[0] == before[0] and np.std(np.diff(after)) < np.std(np.diff(before))
    page.locator("#pictures img").first.wait_for()
    assert page.eval_on_selector_all("#pictures img", "all => all.every(i => i.naturalWidth > 100)")


@needs_browser
def test_the_plane_and_the_sliders_move_the_picture(folder: Path, browser: Browser, tmp_path: Path) -> None:
    page = browser.open(folder / "plane" / "report.html")
    field = page.locator(".plane")
    field.scroll_into_view_if_needed()
    begin = shown(page)
    field.hover(position={"x": 5, "y": 5})
    corner = shown(page)
    assert page.locator("canvas.shown").first.get_attribute("data-at") == "0 0" and corner[0] != begin[0]
    field.press("ArrowDown")
    assert page.locator("canvas.shown").first.get_attribute("data-at") == "1 0"
    page.locator(".control input[type=range]").fill("12")
    assert shown(page)[1] != begin[1]

    assert main([str(folder / "path"), "--out", str(tmp_path / "path.html")]) == 0
    page = browser.open(tmp_path / "path.html")
    begin = shown(page)
    page.locator(".control input[type=range]").first.fill("12")
    moved = shown(page)
    page.locator(".control select").first.select_option("1")
    assert page.locator("canvas.shown").first.get_attribute("data-at") == "1 12"
    assert begin[0] != moved[0] != shown(page)[0]


@needs_browser
def test_a_sweeps_table_sorts_and_its_plots_are_drawn(sweep: Path, browser: Browser) -> None:
    page = browser.open(sweep)
    objective = "#settings tbody tr td:nth-child(4)"
    assert page.locator(objective).all_inner_texts() == ["9", "9.5 ± 0.71", "10.5 ± 0.71", "10.5 ± 0.71"]
    page.locator("#settings th", has_text="model.lambda_rec").click()
    first = "#settings tbody tr td:nth-child(1)"
    assert page.locator(first).all_inner_texts() == ["9", "9", "10", "10"]
    page.locator("#settings th", has_text="model.lambda_rec").click()
    assert page.locator(first).all_inner_texts() == ["10", "10", "9", "9"]
    page.locator("#heat .heatmaplayer").wait_for()
    page.locator("#parallel .parcoords").first.wait_for()
    page.locator("#overlaid").scroll_into_view_if_needed()
    page.locator("#overlaid .scatterlayer path.js-line").first.wait_for(state="attached")  # a flat one
    assert page.evaluate("document.getElementById('overlaid').data.length") == 7
    assert page.locator("#failures details").count() == 1


@needs_browser
def test_names_and_values_are_text(folder: Path, sweep: Path, browser: Browser, tmp_path: Path) -> None:
    """A run's name, configuration, messages and metrics that would be code; none runs, and each is seen as it is."""
    run = tmp_path / EVIL
    shutil.copytree(folder / "plane", run)
    config = (run / "config.yaml").read_text().replace("name: digits", f"name: {json.dumps(EVIL_END)}")
    (run / "config.yaml").write_text(config)
    append_line(run / "metrics.jsonl", {"kind": EVIL, "step": 40, "message": EVIL_END})
    append_line(run / "metrics.jsonl", {"kind": "train", "step": 45, f"loss/{EVIL}/{EVIL_END}": 1.0, EVIL: 2.0})
    append_line(run / "metrics.jsonl", {"kind": "evaluation", "split": "valid", "step": 40, f"mse/{EVIL_END}": 1.0})
    (run / "images" / f"{EVIL}.png").write_bytes((run / "images" / "samples.png").read_bytes())
    assert main([str(run)]) == 0
    for file in (run / "report.html", sweep):
        page = browser.open(file)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for place in page.locator("section").all():
                place.scroll_into_view_if_needed()
            page.locator(".js-plotly-plot").last.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert EVIL_END in page.locator("body").inner_text()
        assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.harmed") is None
        assert file.parent == sweep.parent or page.title() == EVIL
