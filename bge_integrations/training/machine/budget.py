"""A loss whose forward passes keep to a budget of tokens. Imports torch.

If a batch's activations do not fit into memory, gradients of the vectors are cached: Gao et al. 2021,
https://arxiv.org/abs/2101.06983.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from bge_integrations.training.machine.memory import DEFAULT_BUDGET, Budget
from bge_integrations.training.machine.processes import total

__all__ = ["BudgetedLoss", "mini_batches", "unit_rows"]

_PADDING_WORTH_A_PASS = {"cpu": 256}
"""Padding tokens that cost more than one more forward pass, by kind of device, where padding is computed. For MiniLM in
bfloat16 on one core, a pass cost as much as 60 tokens; more cores compute tokens faster."""
_ELSEWHERE = 4096


class BudgetedLoss(CachedLossMixin, nn.Module):
    """A loss of the vectors of a batch. `loss_of` says which one."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a SentenceTransformer, also inside a wrapper
        *,
        budget: Budget = DEFAULT_BUDGET,
    ) -> None:
        """Takes the model and the budget."""
        super().__init__()
        self.model = model
        self.mini_batch_size = 1
        self.mini_batch_num_tokens = budget.mini_batch_tokens
        self.budget = budget

    def by(self, model: nn.Module, features: Iterable[dict[str, Tensor]], labels: Any) -> Tensor:  # noqa: ANN401
        """Returns the loss as `forward`, where the forward passes are those of a model that may wrap the own one."""
        if self.model is not model:
            self.model = model
        return self(features, labels)  # type: ignore[no-any-return] # of a module

    def loss_of(self, vectors: list[Tensor], labels: Any, *, with_backward: bool) -> Tensor:  # noqa: ANN401
        """Returns the loss, the mean over the rows of all processes.

        Args:
            vectors: Of each column.
            labels: What the loss takes beside them.
            with_backward: Whether to compute the gradients of the vectors, and to return the loss alone.
        """
        raise NotImplementedError

    def forward(self, features: Iterable[dict[str, Tensor]], labels: Any) -> Tensor:  # noqa: ANN401 - of each loss
        """Returns the loss, the mean over the rows of all processes.

        Args:
            features: Columns of token ids and masks, each sorted by length.
            labels: What the loss takes beside their vectors.
        """
        columns = list(features)
        lengths = [column["attention_mask"].sum(1).tolist() for column in columns]
        device = columns[0]["input_ids"].device
        padding = _PADDING_WORTH_A_PASS.get(device.type, _ELSEWHERE) if self.budget.pads else None
        places = [mini_batches(one, self.budget.mini_batch_tokens, padding) for one in lengths]
        parts = [
            {name: rows[begin:end] for name, rows in column.items()}
            for column, of_column in zip(columns, places, strict=True)
            for begin, end in of_column
        ]
        layout = _Parts([len(of_column) for of_column in places], labels)
        # All processes take the same way, since each way has its own communication.
        is_large = sum(map(sum, lengths)) > self.budget.tokens_in_memory
        if torch.is_grad_enabled() and total(float(is_large), device):
            return self.forward_cached(parts, layout)  # type: ignore[arg-type] # labels of another kind
        vectors = [
            [
                found
                for found, _ in self.embed_minibatch_iter(
                    part, with_grad=torch.is_grad_enabled(), copy_random_state=False
                )
            ]
            for part in parts
        ]
        return self.calculate_loss(vectors, layout)

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Any = None,  # noqa: ANN401 - by the mixin's name for it
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """See `CachedLossMixin.calculate_loss`."""
        layout: _Parts = labels
        parts = iter(reps)
        vectors = [torch.cat([one for _ in range(count) for one in next(parts)]) for count in layout.counts]
        return self.loss_of(vectors, layout.labels, with_backward=with_backward)


@dataclass(frozen=True)
class _Parts:
    """How many mini-batches each column has, and what the loss takes beside the vectors."""

    counts: list[int]
    labels: Any


def mini_batches(lengths: Sequence[int], tokens: int, padding: int | None) -> list[tuple[int, int]]:
    """Returns the first and the last place (exclusive) of each mini-batch.

    Args:
        lengths: Tokens of each text, shortest first.
        tokens: Tokens of a mini-batch, at most, computed padding included. A longer text is alone.
        padding: Padding tokens of a mini-batch, at most; `None`: padding is not computed.
    """
    found = []
    begin = real = 0
    for place, length in enumerate(lengths):
        computed = real + length if padding is None else (place - begin + 1) * length
        if place > begin and (computed > tokens or computed - real - length > (padding or 0)):
            found.append((begin, place))
            begin, real = place, 0
        real += length
    return [*found, (begin, len(lengths))]


def unit_rows(rows: Tensor) -> Tensor:
    """Returns the rows with L2 norm 1, at least in float32."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
