"""The loss of a model that imitates the vectors of a teacher. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bge_integrations.training.machine.budget import BudgetedLoss, unit_rows
from bge_integrations.training.machine.processes import process_count, total

__all__ = ["ImitationLoss"]


class ImitationLoss(BudgetedLoss):
    """The distance of a model's vectors from a teacher's.

    Vectors of the teacher's dimension are compared with the teacher's: the loss is the mean of 1 - cosine. Vectors of
    another dimension can't be. Then the cosine of every two texts of the batch is compared with the teacher's cosine
    of the same two: the loss is the mean squared difference.
    """

    def loss_of(self, vectors: list[Tensor], labels: Any, *, with_backward: bool) -> Tensor:  # noqa: ANN401
        """See `BudgetedLoss.loss_of`. The labels are those of `TargetCollator`."""
        targets: Mapping[str, Tensor] = labels
        found = unit_rows(vectors[0])[targets["places"]]
        wanted = targets["vectors"].to(found.dtype)
        if found.shape[1] == wanted.shape[1]:
            distances = 1 - (found * wanted).sum(1)
        else:
            squares = (found @ found.T - wanted @ wanted.T).square().fill_diagonal_(0)
            distances = squares.sum(1) / max(len(found) - 1, 1)
        # Each process has the mean of its own rows, and the processes are averaged afterwards.
        loss: Tensor = distances.sum() * (process_count() / total(len(found), found.device))
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return loss
