"""Which texts of a training batch belong together. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Layout"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which texts of a batch belong together. Each different text of the batch is encoded once.

    A row is a query with its positive passage and its negatives. Rows can have different numbers of negatives.

    Attributes:
        queries: int64, shape [rows]: the place of each row's query among the encoded queries.
        candidates: int64, shape [rows, most candidates]: the places of each row's passages among the encoded passages,
            the positive first; -1 where a row has fewer.
        keys: int64, shape [passages]: equal for equal passages, in every process.
        known: int64, shape [rows, most further positives]: keys of texts that answer a row's query too and are no
            negatives for it; -1 where a row has fewer.
        is_alone: bool, shape [rows]: whether a row is compared with its own candidates only.
        texts: int64, shape [passages]: the key of each passage's text without an instruction, which `known` is compared
            with; `None`: no passage has an instruction, and `keys` are those.
        teacher: float32, shape [rows, most candidates]: a teacher's scores of the candidates; `None` without a teacher.
        guide_queries: float32, shape [queries, dimension]: vectors of a guide; `None` without a guide.
        guide_passages: float32, shape [passages, dimension].
    """

    queries: Tensor
    candidates: Tensor
    keys: Tensor
    known: Tensor
    is_alone: Tensor
    texts: Tensor | None = None
    teacher: Tensor | None = None
    guide_queries: Tensor | None = None
    guide_passages: Tensor | None = None

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> Layout:
        """Makes a layout of `as_dict`, after a trainer has moved the tensors to its device."""
        return cls(**tensors)

    def as_dict(self) -> dict[str, Tensor]:
        """Returns the tensors by name, as a trainer wants them."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.queries)
