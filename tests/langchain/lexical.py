"""A tiny bge-m3 that finds most words important, as a random one may not."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoints_of_pairs import make_m3


def make_lexical_m3(folder: Path) -> Path:
    """Saves a random bge-m3 for texts of up to 128 tokens, whose lexical weights are mostly above 0."""
    make_m3(folder, positions=128)
    head = torch.load(folder / "sparse_linear.pt", weights_only=True)
    torch.save({**head, "bias": head["bias"] + 0.7}, folder / "sparse_linear.pt")
    return folder
