"""The contrastive loss: equal to its formula, with cached gradients, and over several processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_integrations.training.losses.contrastive import ContrastiveLoss
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.rows.layout import Layout
from tests.processes import Together

TEMPERATURE = 0.05
_VOCABULARY, _WIDTH = 40, 8


class Tiny(torch.nn.Module):
    """A mean of word vectors and a layer, with the interface of a SentenceTransformer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(_VOCABULARY, _WIDTH, dtype=torch.float64)
        self.layer = torch.nn.Linear(_WIDTH, _WIDTH, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1)
        mean = (self.words(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        return {"sentence_embedding": torch.tanh(self.layer(self.dropout(mean)))}


def column(texts: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, texts))
    return {
        "input_ids": torch.tensor([[*text, *[0] * (width - len(text))] for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
    }


def vectors(model: Tiny, texts: list[list[int]]) -> Tensor:
    return F.normalize(model(column(texts))["sentence_embedding"], dim=-1)


QUERIES = [[1, 2], [3], [4, 5, 6], [7, 8]]
PASSAGES = [[10], [11, 12], [13], [14, 15, 16], [17, 18], [19], [20, 21], [22, 23, 24]]
GROUPS = [[0, 1, 2], [3], [4, 5], [6, 7]]


def small_budget(tokens: int) -> Budget:
    return Budget(mini_batch_tokens=4, tokens_in_memory=tokens)


def layout(groups: list[list[int]] = GROUPS, keys: list[int] | None = None, **changes: Any) -> Layout:  # noqa: ANN401
    most = max(map(len, groups))
    count = max(place for group in groups for place in group) + 1
    plain = {
        "queries": torch.arange(len(groups)),
        "candidates": torch.tensor([[*group, *[-1] * (most - len(group))] for group in groups]),
        "keys": torch.tensor(keys or list(range(count))),
        "known": torch.empty((len(groups), 0), dtype=torch.int64),
        "is_alone": torch.zeros(len(groups), dtype=torch.bool),
    }
    return Layout(**{**plain, **changes})


def scores(model: Tiny) -> Tensor:
    return vectors(model, QUERIES) @ vectors(model, PASSAGES).T / TEMPERATURE


def loss_of(model: Tiny, chosen: Layout, **options: Any) -> Tensor:  # noqa: ANN401
    loss: Tensor = ContrastiveLoss(model, temperature=TEMPERATURE, **options)(
        [column(QUERIES), column(PASSAGES)], chosen
    )
    return loss


def gradients(model: Tiny) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


class TestFormula:
    def test_all_passages_of_the_batch_are_negatives(self) -> None:
        model = Tiny()
        expected = F.cross_entropy(scores(model), torch.tensor([0, 3, 4, 6]))
        assert torch.allclose(loss_of(model, layout()), expected)

    def test_other_answers_are_no_negatives(self) -> None:
        model = Tiny()
        known = torch.tensor([[3, 4], [-1, -1], [0, -1], [-1, -1]])
        ignored = torch.zeros((4, 8), dtype=torch.bool)
        ignored[0, [3, 4]] = ignored[2, 0] = True
        expected = F.cross_entropy(scores(model).masked_fill(ignored, -math.inf), torch.tensor([0, 3, 4, 6]))
        assert torch.allclose(loss_of(model, layout(known=known)), expected)

    def test_a_row_can_be_alone(self) -> None:
        model = Tiny()
        found = loss_of(model, layout(is_alone=torch.tensor([True, False, False, True])))
        s = scores(model)
        parts = [
            F.cross_entropy(s[0:1, [0, 1, 2]], torch.tensor([0])),
            F.cross_entropy(s[1:2], torch.tensor([3])),
            F.cross_entropy(s[2:3], torch.tensor([4])),
            F.cross_entropy(s[3:4, [6, 7]], torch.tensor([0])),
        ]
        assert torch.allclose(found, torch.stack(parts).mean())

    def test_kl_div_adds_the_divergence_of_the_own_candidates(self) -> None:
        model, teacher = Tiny(), torch.tensor([[2.0, 1, -1], [0.5, 0, 0], [1, 3, 0], [0, -2, 0]], dtype=torch.float64)
        s, expected = scores(model), []
        for row, group in enumerate(GROUPS):
            target = teacher[row, : len(group)].softmax(-1)
            own = F.cross_entropy(s[row : row + 1], torch.tensor([group[0]]))
            expected.append(own - (target * s[row, group].log_softmax(-1)).sum())
        found = loss_of(model, layout(teacher=teacher), distillation="kl_div")
        assert torch.allclose(found, torch.stack(expected).mean())
        found.backward()  # type: ignore[no-untyped-call]
        assert all(gradient.isfinite().all() for gradient in gradients(model))

    def test_m3_kd_loss_weights_a_cross_entropy_for_each_candidate(self) -> None:
        model, teacher = Tiny(), torch.tensor([[2.0, 1, -1], [0.5, 0, 0], [1, 3, 0], [0, -2, 0]], dtype=torch.float64)
        s, expected = scores(model), []
        for row, group in enumerate(GROUPS):
            target = teacher[row, : len(group)].softmax(-1)
            total, left = torch.zeros((), dtype=torch.float64), s[row].clone()
            for place, passage in enumerate(group):
                total = total + target[place] * F.cross_entropy(left.unsqueeze(0), torch.tensor([passage]))
                left = left.masked_fill(torch.arange(8) == passage, -math.inf)
            expected.append(total)
        found = loss_of(model, layout(teacher=teacher), distillation="m3_kd_loss")
        assert torch.allclose(found, torch.stack(expected).mean())
        found.backward()  # type: ignore[no-untyped-call]
        assert all(gradient.isfinite().all() for gradient in gradients(model))

    def test_matryoshka_is_the_mean_over_lengths(self) -> None:
        model = Tiny()
        q, p = vectors(model, QUERIES), vectors(model, PASSAGES)
        expected = [
            F.cross_entropy(
                F.normalize(q[:, :dim], dim=-1) @ F.normalize(p[:, :dim], dim=-1).T / TEMPERATURE,
                torch.tensor([0, 3, 4, 6]),
            )
            for dim in (8, 4, 2)
        ]
        assert torch.allclose(loss_of(model, layout(), matryoshka_dims=[8, 4, 2]), torch.stack(expected).mean())

    def test_a_guide_tells_false_negatives(self) -> None:
        model = Tiny()
        guide_queries, guide_passages = torch.eye(8)[:4], torch.eye(8)
        guide_passages = guide_passages * 0
        guide_passages[0, 0], guide_passages[3, 0], guide_passages[5, 0] = 0.8, 0.9, 0.7  # of the first query
        chosen = layout(guide_queries=guide_queries, guide_passages=guide_passages)
        ignored = torch.zeros((4, 8), dtype=torch.bool)
        ignored[0, 3] = True
        expected = F.cross_entropy(scores(model).masked_fill(ignored, -math.inf), torch.tensor([0, 3, 4, 6]))
        assert torch.allclose(loss_of(model, chosen), expected)


class TestCachedGradients:
    @pytest.mark.parametrize("distillation", [None, "kl_div", "m3_kd_loss"])
    def test_equal_those_of_the_whole_batch(self, distillation: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
        teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
        found = []
        for tokens in (10_000, 0):
            monkeypatch.setattr("bge_integrations.training.losses.contrastive.SCORES_AT_ONCE", 10_000 if tokens else 8)
            model = Tiny()
            loss = loss_of(
                model,
                layout(teacher=teacher),
                budget=small_budget(tokens),
                distillation=distillation,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            found.append((loss.detach(), gradients(model)))
        assert torch.allclose(found[0][0], found[1][0])
        for one, other in zip(found[0][1], found[1][1], strict=True):
            assert torch.allclose(one, other, atol=1e-7)

    def test_dropout_is_the_same_in_both_passes(self) -> None:
        model = Tiny(dropout=0.5)
        torch.manual_seed(1)
        loss = loss_of(model, layout(), budget=small_budget(0))
        loss.backward()  # type: ignore[no-untyped-call]
        cached = gradients(model)
        model.zero_grad()
        torch.manual_seed(1)
        plain = ContrastiveLoss(model, temperature=TEMPERATURE, budget=small_budget(10_000))
        again = plain([column(QUERIES), column(PASSAGES)], layout())
        again.backward()
        assert torch.allclose(loss.detach(), again.detach())
        for one, other in zip(cached, gradients(model), strict=True):
            assert torch.allclose(one, other, atol=1e-7)


_PROCESS = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.test_contrastive import GROUPS, PASSAGES, QUERIES, TEMPERATURE, Tiny, column, gradients, layout, small_budget
from bge_integrations.training.losses.contrastive import ContrastiveLoss
result, cached = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
# The second passage of the first process is the first of the second one too; the rows are 3 and 1.
queries = [QUERIES[:3], QUERIES[3:]][rank]
passages = [PASSAGES[:6], [PASSAGES[1], *PASSAGES[6:]]][rank]
groups = [GROUPS[:3], [[1, 2, 0]]][rank]
keys = [[0, 1, 2, 3, 4, 5], [1, 6, 7]][rank]
model = Tiny()
wrapped = DistributedDataParallel(model)
loss = ContrastiveLoss(wrapped, temperature=TEMPERATURE, budget=small_budget(0 if cached else 10_000))
value = loss([column(queries), column(passages)], layout(groups, keys))
value.backward()
values = torch.stack([value.detach()])
dist.all_reduce(values)
if rank == 0:
    torch.save((values / 2, gradients(model)), result)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("cached", [False, True])
def test_two_processes_have_the_gradient_of_one(tmp_path: Path, together: Together, cached: bool) -> None:
    result = tmp_path / "result.pt"
    ended = together(_PROCESS, result, int(cached))
    assert ended.codes == [0, 0], ended.said
    value, found = torch.load(result)
    model = Tiny()
    # In one process, each different passage is there once.
    loss = loss_of(model, layout([*GROUPS[:3], [6, 7, 1]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(value, loss.detach(), atol=1e-6)
    for one, other in zip(found, gradients(model), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
