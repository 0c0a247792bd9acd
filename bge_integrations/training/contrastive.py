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

from bge_integrations.training.budget import BudgetedLoss, unit_rows
from bge_integrations.training.gathering import gather_rows, process_count, total
from bge_integrations.training.layout import Layout
from bge_integrations.training.memory import DEFAULT_BUDGET, SCORES_AT_ONCE, Budget
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
        """Describes the loss.

        Args:
            model: The model.
            temperature: Divisor of the cosines.
            distillation: `"kl_div"`: the divergence of the row's own candidates from the teacher's softmax is added.
                `"m3_kd_loss"`: the teacher's softmax weights a cross entropy for each candidate, in place of InfoNCE.
            matryoshka_dims: The loss is the mean over these lengths of the vectors; empty: only the full length.
            guide_margin: A passage is no negative if the guide's cosine is above that of the positive less this.
            budget: Tokens of a forward pass, and tokens whose activations may be in memory.
        """
        super().__init__(model, budget=budget)
        self.temperature = temperature
        self.distillation = distillation
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.guide_margin = guide_margin

    def loss_of(self, vectors: list[Tensor], labels: Any, *, with_backward: bool) -> Tensor:  # noqa: ANN401
        """See `BudgetedLoss.loss_of`. The labels are a `Layout`."""
        layout: Layout = labels
        queries, passages = map(unit_rows, vectors)
        everything, first = gather_rows(passages)
        shared = _Shared(self, layout, everything, first)
        rows = max(1, SCORES_AT_ONCE // max(len(everything), 1))
        parts = [slice(start, start + rows) for start in range(0, len(layout), rows)]
        # Each process has the mean of its own rows, and the processes are averaged afterwards.
        scale = process_count() / total(len(layout), queries.device)
        if not with_backward:
            return scale * torch.stack([shared.loss(queries, everything, part) for part in parts]).sum()
        asked, found = (one.detach().requires_grad_() for one in (queries, everything))
        loss = queries.new_zeros(())
        for part in parts:
            share = scale * shared.loss(asked, found, part)
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        torch.autograd.backward([queries, everything], [asked.grad, found.grad])
        return loss


class _Shared:
    """What the rows of a batch have in common: which passages of all processes are no negatives."""

    def __init__(self, loss: ContrastiveLoss, layout: Layout, everything: Tensor, first: int) -> None:
        self._settings = loss
        self._layout = layout
        keys, _ = gather_rows(layout.keys)
        # Of equal passages in several processes, the first one counts.
        _, inverse = torch.unique(keys, return_inverse=True)
        place = torch.arange(len(keys), device=keys.device)
        firsts = torch.full((int(inverse.max()) + 1,), len(keys), device=keys.device)
        firsts = firsts.scatter_reduce(0, inverse, place, "amin")
        self._canonical = firsts[inverse]
        self._is_copy = self._canonical != place
        self._texts = keys if layout.texts is None else gather_rows(layout.texts)[0]
        own = layout.candidates
        self._is_own = own >= 0
        self._own = self._canonical[(own.clamp(min=0) + first)]
        self._guide_passages = None
        if layout.guide_passages is not None:
            self._guide_passages, _ = gather_rows(layout.guide_passages)
        self._dimensions = everything.shape[1]

    def loss(self, queries: Tensor, passages: Tensor, part: slice) -> Tensor:
        """Returns the sum of the losses of some rows."""
        layout, settings = self._layout, self._settings
        asked = queries[layout.queries[part]]
        ignored = self._ignored(part)
        dims = settings.matryoshka_dims or (self._dimensions,)
        losses = []
        for dim in dims:
            one, other = asked, passages
            if dim < self._dimensions:
                one, other = F.normalize(asked[:, :dim], dim=-1), F.normalize(passages[:, :dim], dim=-1)
            scores = (one @ other.T / settings.temperature).masked_fill(ignored, -math.inf)
            losses.append(self._of_scores(scores, part))
        return torch.stack(losses).mean()

    def _ignored(self, part: slice) -> Tensor:
        """Returns which passages are neither the positive nor negatives of some rows, shape [rows, passages]."""
        layout, own, is_own = self._layout, self._own[part], self._is_own[part]
        ignored = self._is_copy.expand(len(own), -1).clone()
        ignored |= self._is_known(part)
        ignored |= layout.is_alone[part].unsqueeze(1)
        ignored |= self._doubted(part)
        # The row's own candidates always count.
        rows = torch.arange(len(own), device=own.device).unsqueeze(1).expand_as(own)
        ignored[rows[is_own], own[is_own]] = False
        return ignored

    def _is_known(self, part: slice) -> Tensor:
        known = self._layout.known[part]
        if not known.shape[1]:
            return torch.zeros((len(known), len(self._texts)), dtype=torch.bool, device=known.device)
        return torch.stack([self._texts == column.unsqueeze(1) for column in known.unbind(1)]).any(0)

    def _doubted(self, part: slice) -> Tensor:
        """Returns which passages the guide takes for answers too."""
        layout, own = self._layout, self._own[part]
        if layout.guide_queries is None or self._guide_passages is None:
            return torch.zeros((len(own), len(self._texts)), dtype=torch.bool, device=own.device)
        scores = layout.guide_queries[layout.queries[part]] @ self._guide_passages.T
        positive = scores.gather(1, own[:, :1])
        return scores > positive - self._settings.guide_margin

    def _of_scores(self, scores: Tensor, part: slice) -> Tensor:
        layout, own, is_own = self._layout, self._own[part], self._is_own[part]
        distillation, teacher = self._settings.distillation, layout.teacher
        if distillation is None or teacher is None:
            return F.cross_entropy(scores, own[:, 0], reduction="sum")
        target = teacher[part].to(scores.dtype).masked_fill(~is_own, -math.inf).softmax(-1)
        if distillation == "kl_div":
            group = scores.gather(1, own).masked_fill(~is_own, -math.inf)
            divergence = -(target * group.log_softmax(-1).masked_fill(~is_own, 0)).sum()
            return F.cross_entropy(scores, own[:, 0], reduction="sum") + divergence
        losses = []
        for place in range(own.shape[1]):
            rows = is_own[:, place]
            of_place = F.cross_entropy(scores[rows], own[rows, place], reduction="none")
            losses.append((target[rows, place] * of_place).sum())
            scores = scores.scatter(1, own[:, place : place + 1], -math.inf)
        return torch.stack(losses).sum()
