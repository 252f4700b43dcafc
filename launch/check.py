"""What only torch can tell of a configuration: whether its model can be built, and from which data.

torch takes seconds to load, so it loads in a process of its own while the sweep is still being composed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from omegaconf import OmegaConf

from dtrain.config import Config, ConfigError, validate

ROOT = Path(__file__).resolve().parent.parent


class Checker:
    """A process that checks configurations. Starts at once; ends with its `with` block."""

    def __enter__(self) -> Checker:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.check"], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def errors(self, configs: list[Config]) -> list[str | None]:
        """For each configuration, why it cannot be built, or None. RuntimeError if the process itself fails."""
        keys = [c.model_dump_json(exclude={"seed", "run", "loader", "evaluate"}) for c in configs]
        distinct = {key: c.model_dump(mode="json") for key, c in zip(keys, configs, strict=True)}
        answers, _ = self._process.communicate(json.dumps(list(distinct.values())))
        if self._process.returncode:
            raise RuntimeError(f"the check of the points ended with exit code {self._process.returncode}")
        found = dict(zip(distinct, json.loads(answers), strict=True))
        return [found[key] for key in keys]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def _main() -> None:
    import torch

    from dtrain.build import build_algorithm, open_data

    answers: list[str | None] = []
    for content in json.load(sys.stdin):
        try:
            config = validate(OmegaConf.create(content))
            train, _ = open_data(config)
            with torch.device("meta"):  # shapes without memory
                build_algorithm(config, train.image_shape)
            answers.append(None)
        except ConfigError as e:
            answers.append(str(e))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    _main()
