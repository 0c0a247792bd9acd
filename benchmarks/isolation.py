"""Keeps a benchmark away from what would change its figures, or what it would change."""

from __future__ import annotations

import os
from pathlib import Path


def isolate(workdir: Path) -> None:
    """Keeps this process and those that it starts away from the hub, from progress bars and from the user's cache.

    Args:
        workdir: The folder that a cache of the benchmark's own is in.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["BGE_INTEGRATIONS_CACHE"] = str(workdir / "cache")
