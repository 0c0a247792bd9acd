"""Which passages count for each row of a batch, and the losses of a matrix of scores. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_integrations.training.machine.processes import gather_rows, process_count, total
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.settings import Distillation

__all__ = ["Candidates", "loss_in_parts"]


class Candidates:
    """The passages of all processes: the positive of each row, its own negatives, and those that are no negatives.

    A matrix of scores has a row for each row of this process's batch, and a column for each passage of all processes.
    """

    def __init__(self, layout: Layout, *, distillation: Distillation | None = None, guide_margin: float = 0.0) -> None:
        """Gathers what the processes know of their passages."""
        self._layout = layout
        self._distillation = distillation
        self._guide_margin = guide_margin
        keys, first = gather_rows(layout.keys)
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

    def __len__(self) -> int:
        """Returns the number of passages of all processes."""
        return len(self._is_copy)

    def parts(self, scores_at_once: int) -> Iterator[slice]:
        """Yields parts of the rows whose scores may be in memory together."""
        rows = max(1, scores_at_once // max(len(self), 1))
        yield from (slice(start, start + rows) for start in range(0, len(self._layout), rows))

    def ignored(self, part: slice) -> Tensor:
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
        return scores > positive - self._guide_margin

    def loss(self, scores: Tensor, part: slice) -> Tensor:
        """Returns the sum of the losses of some rows.

        Without a teacher it is the cross entropy of the positive. With `"kl_div"`, the divergence of the row's own
        candidates from the teacher's softmax is added. With `"m3_kd_loss"`, the teacher's softmax weights a cross
        entropy for each candidate instead.

        Args:
            scores: Shape [rows, passages], divided by the temperature, -inf where `ignored` is true.
            part: The rows.
        """
        layout, own, is_own = self._layout, self._own[part], self._is_own[part]
        distillation, teacher = self._distillation, layout.teacher
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


def loss_in_parts(
    tensors: Sequence[Tensor],
    parts: Iterator[slice],
    loss_of: Callable[[Sequence[Tensor], slice], Tensor],
    *,
    rows: int,
    with_backward: bool,
) -> Tensor:
    """Returns the mean loss over the rows of all processes, part by part.

    Args:
        tensors: What the scores are made of.
        parts: Parts of the rows.
        loss_of: Function from the tensors and a part to the sum of the losses of its rows.
        rows: Rows of this process.
        with_backward: Whether to compute the gradients of the tensors, one part in memory at a time, and to return the
            loss alone.
    """
    # Each process has the mean of its own rows, and the processes are averaged afterwards.
    scale = process_count() / total(rows, tensors[0].device)
    if not with_backward:
        return scale * torch.stack([loss_of(tensors, part) for part in parts]).sum()
    leaves = [one.detach().requires_grad_() for one in tensors]
    loss = tensors[0].new_zeros(())
    for part in parts:
        share = scale * loss_of(leaves, part)
        share.backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    torch.autograd.backward(list(tensors), [leaf.grad for leaf in leaves])
    return loss
