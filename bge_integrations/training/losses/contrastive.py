"""The contrastive loss of BGE models. Imports torch.

For a query q with the positive p+ and all passages P of the batch, in all processes:

    loss = -log( exp(q·p+ / t) / sum over p in P of exp(q·p / t) ),   unit vectors, t the temperature

This is InfoNCE with in-batch and cross-device negatives, as in the model card of BGE
(https://huggingface.co/BAAI/bge-large-en#train) and in C-Pack, https://arxiv.org/abs/2309.07597.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_integrations.training.losses.candidates import Candidates, loss_in_parts
from bge_integrations.training.machine.budget import BudgetedLoss, unit_rows
from bge_integrations.training.machine.memory import DEFAULT_BUDGET, SCORES_AT_ONCE, Budget
from bge_integrations.training.machine.processes import gather_rows
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.settings import Distillation

__all__ = ["ContrastiveLoss"]


class ContrastiveLoss(BudgetedLoss):
    """InfoNCE over all passages of a batch, and optionally distillation from a teacher's scores.

    It takes a column of queries, a column of passages, and the `Layout` of a batch.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a SentenceTransformer, also inside a wrapper
        *,
        temperature: float = 0.02,
        distillation: Distillation | None = None,
        matryoshka_dims: Sequence[int] = (),
        guide_margin: float = 0.0,
        budget: Budget = DEFAULT_BUDGET,
    ) -> None:
        """Describes the loss."""
        super().__init__(model, budget=budget)
        self.temperature = temperature
        self.distillation = distillation
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.guide_margin = guide_margin

    def loss_of(self, vectors: list[Tensor], labels: Any, *, with_backward: bool) -> Tensor:  # noqa: ANN401
        """See `BudgetedLoss.loss_of`. The labels are a `Layout`."""
        layout: Layout = labels
        queries, passages = map(unit_rows, vectors)
        everything, _ = gather_rows(passages)
        candidates = Candidates(layout, distillation=self.distillation, guide_margin=self.guide_margin)

        def of_part(tensors: Sequence[Tensor], part: slice) -> Tensor:
            ignored = candidates.ignored(part)
            asked, found = tensors[0][layout.queries[part]], tensors[1]
            losses = []
            for dim in self.matryoshka_dims or (found.shape[1],):
                one, other = asked, found
                if dim < found.shape[1]:
                    one, other = F.normalize(asked[:, :dim], dim=-1), F.normalize(found[:, :dim], dim=-1)
                scores = (one @ other.T / self.temperature).masked_fill(ignored, -math.inf)
                losses.append(candidates.loss(scores, part))
            return torch.stack(losses).mean()

        return loss_in_parts(
            [queries, everything],
            candidates.parts(SCORES_AT_ONCE),
            of_part,
            rows=len(layout),
            with_backward=with_backward,
        )
