"""The loss of rerankers. Imports torch.

For the logits s of a row's positive (k = 0) and its negatives (k > 0):

    loss = -log( exp(s[0]) / sum over k of exp(s[k]) )

With distillation, the cross entropy to a teacher is added. Its target is the softmax of the teacher's scores, without a
temperature:

    loss += - sum over k of softmax(teacher)[k] · log softmax(s)[k]

Both are those of FlagEmbedding's fine-tuning of rerankers (`knowledge_distillation`). A group may have any size.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.training.machine.budget import BudgetedLoss
from bge_integrations.training.machine.memory import DEFAULT_BUDGET, Budget
from bge_integrations.training.machine.processes import process_count, process_rank, total

__all__ = ["GroupLoss", "Groups"]

logger = get_logger(__name__)

_EQUAL = 1e-3
"""Logits of a group that differ by less are one score for all."""
_EQUAL_STEPS = 50
"""Steps in a row after which it is told."""
_GUESSES = 0.98
"""Part of the loss of guessing, which is the logarithm of the group's size, from which nothing is learnt."""
_GUESSED_STEPS = 200
"""Steps after which it is told."""


@dataclass(frozen=True)
class Groups:
    """Which pairs of a batch belong to one row.

    Attributes:
        places: int64, shape [rows, longest group]: places of the pairs of the positive and then of the negatives; -1
            after the last one.
        teacher: float32, same shape: a teacher's scores; `None` without a teacher.
        is_scored: bool, same shape: whether the teacher has scored a pair; `None` without a teacher.
    """

    places: Tensor
    teacher: Tensor | None = None
    is_scored: Tensor | None = None

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> Groups:
        """Makes them of `as_dict`, after a trainer has moved the tensors to its device."""
        return cls(**tensors)

    def as_dict(self) -> dict[str, Tensor]:
        """Returns the tensors by name, as a trainer wants them."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}


class GroupLoss(BudgetedLoss):
    """The cross entropy over the group of each row, and optionally the one to a teacher.

    It takes a column of pairs, and the `Groups` of a batch. The pairs of a group may be in several forward passes.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a PairScorer, also inside a wrapper
        *,
        budget: Budget = DEFAULT_BUDGET,
    ) -> None:
        """Describes the loss."""
        super().__init__(model, budget=budget)
        self._signs = _Signs()

    def loss_of(self, vectors: list[Tensor], labels: Any, *, with_backward: bool) -> Tensor:  # noqa: ANN401
        """See `BudgetedLoss.loss_of`. The vectors are logits, and the labels are `Groups`."""
        groups: Groups = labels
        logits = vectors[0].squeeze(1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        is_there = groups.places >= 0
        scores = logits[groups.places.clamp(min=0)].masked_fill(~is_there, -math.inf)
        losses = F.cross_entropy(scores, torch.zeros_like(groups.places[:, 0]), reduction="sum")
        if process_rank() == 0:
            self._signs.take(scores.detach(), is_there, float(losses.detach()))
        if groups.teacher is not None and groups.is_scored is not None:
            losses = losses + _divergence(scores, groups.teacher, groups.is_scored)
        # Each process has the mean of its own rows, and the processes are averaged afterwards.
        loss = losses * (process_count() / total(len(scores), scores.device))
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return loss


class _Signs:
    """Warns of trainings that lead nowhere, once for each sign: one score for all passages, and a loss of guessing."""

    def __init__(self) -> None:
        self._steps = self._equal_steps = 0
        self._parts: deque[float] = deque(maxlen=_EQUAL_STEPS)

    def take(self, scores: Tensor, is_there: Tensor, loss: float) -> None:
        """Takes the scores of a step, shape [rows, longest group], which of them count, and the rows' summed loss."""
        self._steps += 1
        lowest = scores.masked_fill(~is_there, math.inf).amin(1)
        spread = float((scores.amax(1) - lowest).max())
        self._equal_steps = self._equal_steps + 1 if spread < _EQUAL else 0
        if self._equal_steps == _EQUAL_STEPS:
            logger.warning(
                f"For {_EQUAL_STEPS} steps, the reranker has given all passages of each query one score: it tells "
                "nothing apart. Start again with a lower learning_rate or a longer warmup, and check that the "
                "negatives do not answer their queries."
            )
        of_guessing = float(is_there.sum(1).log().sum())
        self._parts.append(loss / of_guessing if of_guessing else 0.0)
        if self._steps == _GUESSED_STEPS and sum(self._parts) > _GUESSES * len(self._parts) and not self._equal_steps:
            logger.warning(
                f"After {_GUESSED_STEPS} steps, the loss is that of guessing: the logarithm of the group's size. A new "
                "head needs time: train longer, or with another learning_rate (3e-5 to 1e-4). If that does not help, "
                "check that positives answer their queries and negatives do not."
            )


def _divergence(scores: Tensor, teacher: Tensor, is_scored: Tensor) -> Tensor:
    """Returns the sum of the rows' cross entropies to the teacher, over the pairs that it has scored."""
    target = teacher.to(scores.dtype).masked_fill(~is_scored, -math.inf).softmax(-1)
    found = scores.masked_fill(~is_scored, -math.inf).log_softmax(-1).masked_fill(~is_scored, 0)
    return -(target * found).sum()
