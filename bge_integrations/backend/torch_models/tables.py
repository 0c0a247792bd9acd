"""Numbers of rows in a loaded model's embedding tables for words, positions and token types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def word_rows(model: nn.Module) -> int | None:
    """Returns the number of token ids with an embedding; `None` if the model has no such table."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # a custom class, or a model that reads no words
        return None
    weight = getattr(table, "weight", None)
    return int(weight.shape[0]) if weight is not None and weight.ndim == 2 else None


def type_rows(model: nn.Module) -> int | None:
    """Returns the number of token types with an embedding; `None` if the model has no such table."""
    return min((table.num_embeddings for table in _tables(model, "token_type_embeddings")), default=None)


def position_capacity(model: nn.Module) -> int | None:
    """Returns the number of tokens in a text that have positions; `None` if positions are unbounded.

    RoBERTa and similar models never use the rows of the table up to the padding index. For models without a table, such
    as those with rotary positions, the number is in the configuration.
    """
    capacities = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in _tables(model, "position_embeddings")
    ]
    if capacities:
        return min(capacities)
    config: Any = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _tables(model: nn.Module, name: str) -> Iterator[nn.Embedding]:
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] == name and isinstance(module, nn.Embedding):
            yield module
