"""Embedding inside Ray Data, Spark and Daft. Needs the extra of the engine. Each name is imported at its first use.

These classes and functions are thin: they run the public encoder in the engine's workers. Only settings travel to a
worker, and each worker loads its own model. Dividing the work, retries and checkpoints are the engine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._lazy import attach

if TYPE_CHECKING:
    from bge_integrations.distributed.daft import embed_series
    from bge_integrations.distributed.ray import EmbedBatch
    from bge_integrations.distributed.spark import embed_udf

__all__ = ["EmbedBatch", "embed_series", "embed_udf"]

_HOMES = {"EmbedBatch": "ray", "embed_series": "daft", "embed_udf": "spark"}

__getattr__, __dir__ = attach(__name__, _HOMES)
