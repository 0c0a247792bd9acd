"""The loss of rerankers: equal to plain transformers and its formula, with cached gradients, and over processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations.settings import RerankerSettings
from bge_integrations.training import TrainingRow
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.reranking.loss import GroupLoss, Groups
from bge_integrations.training.reranking.pairs import PairCollator
from bge_integrations.training.reranking.scorer import PairScorer
from bge_integrations.training.reranking.start import RerankerStart, open_reranker
from bge_integrations.training.rows.batches import Epochs, RowBatches
from tests.checkpoints import Architecture
from tests.checkpoints_of_pairs import make_reranker
from tests.processes import Together

LONG = "the quick brown fox jumps over the lazy dog " * 20

# Groups of four sizes.
ROWS = (
    TrainingRow("what is a vector?", ("a vector has a length",), ("the fox", LONG), (2.5,), (1.0, -3.0)),
    TrainingRow("fox", ("the quick brown fox",), (), (0.25,), ()),
    TrainingRow("dog " * 8, ("the lazy dog",), ("water", "light", "sugar and plants"), (1.0,), (3.0, 0.0, -1.0)),
    TrainingRow("Paris", ("Paris is the capital of France",), ("Berlin",), (0.0,), (-2.0,)),
    TrainingRow("light", ("plants need light and water",), ("stone", "river"), (7.0,), (6.0, 6.5)),
)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture: Architecture = request.param
    return make_reranker(tmp_path_factory.mktemp(architecture) / "mine", architecture)


def opened(folder: Path) -> tuple[RerankerStart, PairScorer]:
    start = open_reranker(RerankerSettings(model_name=str(folder), device="cpu"))
    return start, PairScorer(start.classifier, start.encoder).eval()


def batch_of(start: RerankerStart, rows: tuple[TrainingRow, ...] = ROWS, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    plain = {"negatives": 7, "easy_negatives": 0.0, "max_length": 40, "seed": 0, "epochs": Epochs()}
    collator = PairCollator(rows, start.reader, **{**plain, **options})
    return collator([{"row": row} for row in range(len(rows))])


def loss_of(scorer: PairScorer, batch: dict[str, Any], tokens_in_memory: int = 100_000) -> Tensor:
    budget = Budget(mini_batch_tokens=60, tokens_in_memory=tokens_in_memory, pads=False)
    loss: Tensor = GroupLoss(scorer, budget=budget)([batch["pairs"]], Groups.of(batch["groups"]))
    return loss


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


class Reference:
    """Plain transformers: a padded batch for each row, and the formula written out."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def scores(self, row: TrainingRow, max_length: int = 40) -> Tensor:
        passages = [row.pos[0], *row.neg]
        encoded = self.tokenizer(
            [row.query] * len(passages),
            passages,
            padding=True,
            truncation="only_second",
            max_length=max_length,
            return_tensors="pt",
        )
        scores: Tensor = self.model(**encoded).logits[:, 0]
        return scores

    def loss(self, rows: tuple[TrainingRow, ...] = ROWS, *, distils: bool = False) -> Tensor:
        losses = []
        for row in rows:
            scores = self.scores(row)
            whole = torch.log(sum((torch.exp(score) for score in scores), torch.zeros(())))
            losses.append(whole - scores[0])
            if distils:
                weights = [math.exp(score) for score in (*(row.pos_scores or ()), *(row.neg_scores or ()))]
                for score, weight in zip(scores, weights, strict=True):
                    losses[-1] = losses[-1] - weight / sum(weights) * (score - whole)
        return torch.stack(losses).mean()


@pytest.mark.parametrize("distils", [False, True])
@pytest.mark.parametrize("tokens_in_memory", [100_000, 0])
def test_loss_and_gradients_are_those_of_plain_transformers(folder: Path, distils: bool, tokens_in_memory: int) -> None:
    start, scorer = opened(folder)
    assert not scorer.pads
    loss = loss_of(scorer, batch_of(start, uses_teacher=distils), tokens_in_memory)
    loss.backward()  # type: ignore[no-untyped-call]
    reference = Reference(folder)
    expected = reference.loss(distils=distils)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.detach() == pytest.approx(expected.item(), abs=1e-5)
    wanted, found = gradients(reference.model), gradients(start.classifier)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), value.numpy(), atol=1e-5, err_msg=name)


def test_an_encoder_of_another_kind_is_computed_with_padding(folder: Path) -> None:
    start, _ = opened(folder)
    scorer = PairScorer(start.classifier, None).eval()
    assert scorer.pads
    assert loss_of(scorer, batch_of(start)).item() == pytest.approx(Reference(folder).loss().item(), abs=1e-5)


def test_dropout_is_the_same_in_both_passes_of_a_large_batch(folder: Path) -> None:
    start, scorer = opened(folder)
    scorer.train()
    found = []
    for tokens in (100_000, 0):
        scorer.zero_grad()
        torch.manual_seed(1)
        loss_of(scorer, batch_of(start), tokens).backward()  # type: ignore[no-untyped-call]
        found.append(gradients(start.classifier))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name].numpy(), value.numpy(), atol=1e-5, err_msg=name)


def test_pairs_are_read_as_the_tokenizer_reads_them_and_stay_with_their_row(folder: Path) -> None:
    start, _ = opened(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = batch_of(start)
    pairs, places = batch["pairs"], batch["groups"]["places"]
    lengths = pairs["attention_mask"].sum(1)
    assert lengths.tolist() == sorted(lengths.tolist())
    assert (places >= 0).sum(1).tolist() == [3, 1, 4, 2, 3]
    for row, of_row in zip(ROWS, places.tolist(), strict=True):
        read = {tuple(pairs["input_ids"][place][: lengths[place]].tolist()) for place in of_row if place >= 0}
        expected = [
            tokenizer(row.query, text, truncation="only_second", max_length=40) for text in (*row.pos, *row.neg)
        ]
        assert read == {tuple(one["input_ids"]) for one in expected}
        first = pairs["input_ids"][of_row[0]][: lengths[of_row[0]]].tolist()
        assert first == expected[0]["input_ids"]
        if "token_type_ids" in pairs:
            assert pairs["token_type_ids"][of_row[0]][: lengths[of_row[0]]].tolist() == expected[0]["token_type_ids"]


def test_a_short_last_batch_does_not_mix_groups(folder: Path) -> None:
    start, scorer = opened(folder)
    rows = (*ROWS, TrainingRow("sugar", ("sugar is sweet",), ("the house",)))
    plain = {"negatives": 7, "easy_negatives": 0.0, "max_length": 40, "seed": 0, "epochs": Epochs()}
    collator = PairCollator(rows, start.reader, **plain)  # type: ignore[arg-type]
    batches = list(RowBatches([range(6)], 4, seed=0, epochs=Epochs()))
    assert sorted(map(len, batches)) == [2, 4]
    reference = Reference(folder)
    for batch in batches:
        found = loss_of(scorer, collator([{"row": row} for row in batch]))
        expected = reference.loss(tuple(rows[row] for row in batch))
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_teacher_says_nothing_about_passages_of_other_rows() -> None:
    logits = torch.tensor([[1.0], [0.5], [-1.0], [2.0]], requires_grad=True)
    groups = Groups(
        torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2.0, 1.0, 0.0, 0.0]]), torch.tensor([[True, True, False, False]])
    )
    found = GroupLoss(None).loss_of([logits], groups, with_backward=False)
    exponents = [math.exp(value) for value in (1.0, 0.5, -1.0, 2.0)]
    target = math.exp(2) / (math.exp(2) + math.exp(1))
    own = exponents[0] / (exponents[0] + exponents[1])
    expected = -math.log(exponents[0] / sum(exponents)) - target * math.log(own) - (1 - target) * math.log(1 - own)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_one_score_for_all_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    loss = GroupLoss(None)
    groups = Groups(torch.tensor([[0, 1, -1], [2, 3, 4]]))
    equal, different = torch.ones(5, 1), torch.tensor([[1.0], [1.0], [1.0], [1.0], [0.9]])
    for _ in range(49):
        loss.loss_of([equal], groups, with_backward=False)
    loss.loss_of([different], groups, with_backward=False)
    for _ in range(49):
        loss.loss_of([equal], groups, with_backward=False)
    assert not caplog.records
    for _ in range(60):
        loss.loss_of([equal], groups, with_backward=False)
    (record,) = caplog.records
    assert "all passages of each query one score" in record.message
    assert "lower learning_rate" in record.message


def test_a_loss_of_guessing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    groups = Groups(torch.tensor([[0, 1, -1], [2, 3, 4]]))
    generator = torch.Generator().manual_seed(0)
    for learns in (True, False):
        loss = GroupLoss(None)
        for _ in range(210):
            logits = torch.randn(5, 1, generator=generator) * 0.01
            logits[[0, 2]] += learns  # the positives
            loss.loss_of([logits], groups, with_backward=False)
        assert len(caplog.records) == (not learns)
    assert "After 200 steps, the loss is that of guessing" in caplog.text


_PROCESS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from tests.test_training_reranker_loss import ROWS, batch_of, gradients, opened
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.reranking.loss import GroupLoss, Groups
result, folder = sys.argv[1], Path(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
start, scorer = opened(folder)
wrapped = DistributedDataParallel(scorer, broadcast_buffers=False)  # as the trainer does
batch = batch_of(start, [ROWS[:4], ROWS[4:]][rank], uses_teacher=True)
found = []
for tokens in (100_000, 0):
    scorer.zero_grad()
    budget = Budget(mini_batch_tokens=60, tokens_in_memory=tokens, pads=False)
    value = GroupLoss(wrapped, budget=budget)([batch["pairs"]], Groups.of(batch["groups"]))
    value.backward()
    values = value.detach().clone()
    dist.all_reduce(values)
    found.append((values / 2, gradients(start.classifier)))
if rank == 0:
    torch.save(found, result)
dist.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_one(tmp_path: Path, together: Together) -> None:
    folder = make_reranker(tmp_path / "mine", "bert")
    result = tmp_path / "result.pt"
    ended = together(_PROCESS, result, folder)
    assert ended.codes == [0, 0], ended.said
    reference = Reference(folder)
    expected = reference.loss(distils=True)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = gradients(reference.model)
    for value, found in torch.load(result):  # with all activations in memory, and with cached gradients
        assert value.item() == pytest.approx(expected.item(), abs=1e-5)
        assert wanted.keys() == found.keys()
        for name, gradient in wanted.items():
            np.testing.assert_allclose(found[name].numpy(), gradient.numpy(), atol=1e-5, err_msg=name)
