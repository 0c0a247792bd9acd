"""The loss of bge-m3's unified fine-tuning. Imports torch.

With the scores of a query and a passage by dense vectors, lexical weights and token vectors, each divided by the
temperature, in the paper's notation:

    s_inter = w1 s_dense + w2 s_lex + w3 s_mul                               w = 1, 0.3, 1
    L       = (λ1 L_dense + λ2 L_lex + λ3 L_mul + L_inter) / 4               λ = 1, 0.1, 1
    L'_x    = -softmax(s_inter) · log softmax(s_x)                           no gradient through s_inter
    L'      = (λ1 L'_dense + λ2 L'_lex + λ3 L'_mul) / 3
    loss    = (L + L') / 2                                                   L alone before self-distillation begins

L_x is InfoNCE of the scores s_x over all passages of the batch. This is section 3.3 of "M3-Embedding" as it was
published, Findings of ACL 2024, https://aclanthology.org/2024.findings-acl.137 (preprint: arXiv 2402.03216). The
softmax of L'_x is that of scores divided by the temperature too, which the paper leaves open. In an earlier preprint,
which FlagEmbedding's repository has (research/BGE_M3), no term has a weight: s_inter is the plain sum, and the loss
L + L'.

FlagEmbedding (1.4.2, `finetune/embedder/encoder_only/m3`) has the same numbers. What differs here: the passages of all
processes act in every term, there in L_dense alone; self-distillation begins after steps of the optimiser, there after
forward passes, which are counted from 0 again after a resume; L_inter and L' work for rows that are compared with their
own negatives alone, where L_inter is 0 or an error there; equal passages and other answers of a query are no negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bge_integrations.training.losses.candidates import Candidates, loss_in_parts
from bge_integrations.training.m3.model import TokenRows
from bge_integrations.training.m3.scores import dense_scores, lexical_scores, token_scores
from bge_integrations.training.machine.budget import BudgetedLoss
from bge_integrations.training.machine.memory import DEFAULT_BUDGET, SCORES_AT_ONCE, Budget
from bge_integrations.training.machine.processes import gather_rows
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.settings import Distillation

__all__ = ["M3Loss"]


class M3Loss(BudgetedLoss):
    """InfoNCE of all three scores and their sum, and self-distillation. It takes what `ContrastiveLoss` takes.

    Attributes:
        distils: Whether self-distillation has begun.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - an M3Model, also inside a wrapper
        *,
        unweighted: Sequence[int],
        temperature: float = 0.02,
        score_weights: Sequence[float] = (1.0, 0.3, 1.0),
        loss_weights: Sequence[float] = (1.0, 0.1, 1.0),
        distillation: Distillation | None = None,
        guide_margin: float = 0.0,
        budget: Budget = DEFAULT_BUDGET,
    ) -> None:
        """Describes the loss.

        Args:
            model: The model.
            unweighted: Ids of tokens without a lexical weight.
            temperature: Divisor of the scores.
            score_weights: Of the dense, the lexical and the token-wise score in s_inter.
            loss_weights: Of their losses. A score of which both weights are 0 is not computed.
            distillation: How the scores of a teacher act in L; see `Candidates.loss`.
            guide_margin: A passage is no negative if the guide's cosine is above that of the positive less this.
            budget: Tokens of a forward pass, and tokens whose activations may be in memory.
        """
        super().__init__(model, budget=budget)
        self.unweighted = tuple(unweighted)
        self.temperature = temperature
        self.score_weights = score_weights
        self.loss_weights = loss_weights
        self.distillation = distillation
        self.guide_margin = guide_margin
        self.distils = False

    def forward(self, features: Iterable[dict[str, Tensor]], labels: Any) -> Tensor:  # noqa: ANN401
        """See `BudgetedLoss.forward`. The labels are a `Layout`."""
        columns = list(features)
        return super().forward(columns, _Batch(labels, columns))

    def loss_of(self, vectors: list[Tensor], labels: Any, *, with_backward: bool) -> Tensor:  # noqa: ANN401
        """See `BudgetedLoss.loss_of`."""
        batch: _Batch = labels
        layout = batch.layout
        queries, own = (
            TokenRows.of(rows, column, self.unweighted) for rows, column in zip(vectors, batch.columns, strict=True)
        )
        passages = TokenRows(*(gather_rows(one)[0] for one in (own.rows, own.ids, own.lengths)))
        candidates = Candidates(layout, distillation=self.distillation, guide_margin=self.guide_margin)

        def of_part(tensors: Sequence[Tensor], part: slice) -> Tensor:
            asked = TokenRows(tensors[0], queries.ids, queries.lengths).chosen(layout.queries[part])
            found = TokenRows(tensors[1], passages.ids, passages.lengths)
            ignored = candidates.ignored(part)
            return self._of_scores(self._scores(asked, found), ignored, candidates, part)

        # A query has as many rows of products as it has tokens.
        longest = int(queries.lengths.max())
        return loss_in_parts(
            [queries.rows, passages.rows],
            candidates.parts(SCORES_AT_ONCE // longest),
            of_part,
            rows=len(layout),
            with_backward=with_backward,
        )

    def _scores(self, asked: TokenRows, found: TokenRows) -> list[Tensor | None]:
        """Returns the three scores divided by the temperature; `None` for one that acts nowhere."""
        kinds: tuple[Callable[[TokenRows, TokenRows], Tensor], ...] = (
            dense_scores,
            lexical_scores,
            lambda one, other: token_scores(one, other, SCORES_AT_ONCE),
        )
        acts = [bool(one or other) for one, other in zip(self.score_weights, self.loss_weights, strict=True)]
        return [kind(asked, found) / self.temperature if used else None for kind, used in zip(kinds, acts, strict=True)]

    def _of_scores(
        self, scores: Sequence[Tensor | None], ignored: Tensor, candidates: Candidates, part: slice
    ) -> Tensor:
        """Returns the sum of the losses of some rows."""
        weighted = [
            weight * one for weight, one in zip(self.score_weights, scores, strict=True) if one is not None and weight
        ]
        together = torch.stack(weighted).sum(0).masked_fill(ignored, -math.inf)
        single = [
            (weight, one.masked_fill(ignored, -math.inf))
            for weight, one in zip(self.loss_weights, scores, strict=True)
            if one is not None and weight
        ]
        losses = [weight * candidates.loss(one, part) for weight, one in single]
        loss = torch.stack([*losses, candidates.loss(together, part)]).sum() / 4
        if not self.distils or not single:
            return loss
        target = together.detach().softmax(-1)
        divergences = [-weight * (target * one.log_softmax(-1).masked_fill(ignored, 0)).sum() for weight, one in single]
        return (loss + torch.stack(divergences).sum() / 3) / 2


@dataclass(frozen=True)
class _Batch:
    """Which texts belong together, and their token ids and masks."""

    layout: Layout
    columns: list[dict[str, Tensor]]
