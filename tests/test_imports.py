"""Imports run one way, and a room loads only what it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import ROOT, freeze

PACKAGES = ("dtrain", "launch", "data_prep")
# Models know no trainer, and the way to a step no Hydra and no pictures.
FOREIGN = {"dtrain.trainer", "dtrain.update", "dtrain.distributed", "dtrain.run", "dtrain.compose", "dtrain.config"}


def modules() -> dict[str, Path]:
    """Module name -> file, of all packages."""
    found = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(p for p in parts if p != "__init__")] = file
    return found


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports, anywhere but for its types only."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        yield from (n for n in names if n in known and known[n].name != "__init__.py")


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """A way from a node back to itself, if there is one."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str] | None:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for other in sorted(arrows.get(node, ())):
                if found := visit(other, [*way, node]):
                    return found
            done.add(node)
        return None

    return next((found for node in sorted(arrows) if (found := visit(node, []))), None)


def arrows_between_files() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported(file, known)) - {name} for name, file in known.items()}


def test_no_file_and_no_folder_imports_in_a_circle() -> None:
    files = arrows_between_files()
    assert circle(files) is None

    def room(module: str) -> str:
        """The folder, or a file that lies beside the folders."""
        return ".".join(module.split(".")[:2])

    rooms: dict[str, set[str]] = {}
    for module, others in files.items():
        rooms.setdefault(room(module), set()).update({room(o) for o in others} - {room(module)})
    assert circle(rooms) is None


def test_networks_losses_and_models_know_nothing_of_the_trainer() -> None:
    for module, others in arrows_between_files().items():
        if module.startswith(("dtrain.models.", "dtrain.nets.", "dtrain.losses.")):
            assert not others & FOREIGN, module


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("dtrain.update", {"hydra", "omegaconf", "matplotlib"}),
        ("dtrain.checkpoint", {"hydra", "omegaconf", "matplotlib"}),
        ("dtrain.trainer", {"hydra", "omegaconf", "matplotlib", "torch_fidelity"}),
        ("dtrain.models.swae", {"hydra", "omegaconf", "matplotlib"}),
        ("dtrain.group", {"hydra", "omegaconf", "matplotlib"}),
        ("dtrain.files", {"torch", "numpy", "hydra"}),
        ("dtrain.metrics", {"torch", "numpy", "hydra"}),
        ("launch.jobs", {"torch"}),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not unwanted & set(done.stdout.split())


# A run that tells what is loaded when its first step is done, and ends.
TO_THE_FIRST_STEP = """
import os, sys
from dtrain.__main__ import main
from dtrain.trainer import Trainer

def told(self):
    print("loaded", *sys.modules, flush=True)
    os._exit(0)

Trainer._log_step = told
main(sys.argv[1:])
"""


def test_a_run_begins_without_compiler_sharding_checkpoints_and_pictures(shards: Path, tmp_path: Path) -> None:
    """On several processes torch's DDP loads the compiler, and that FSDP."""
    file = freeze(tmp_path / "run", shards, "trainer.log_every=1")
    done = subprocess.run(
        [sys.executable, "-c", TO_THE_FIRST_STEP, "--config", str(file)], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    loaded = set(done.stdout.rpartition("loaded ")[2].split())
    assert "dtrain.trainer" in loaded
    unwanted = {"torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "sympy", "matplotlib"}
    assert not unwanted & loaded


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
