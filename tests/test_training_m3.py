"""Unified fine-tuning of bge-m3: the loss, what is saved, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from sentence_transformers import SentenceTransformer
from torch import Tensor
from typer.testing import CliRunner

from bge_integrations import BgeEncoder, BgeM3Encoder
from bge_integrations.cli import app
from bge_integrations.errors import SettingsError, UnsupportedModelError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import (
    EmbedderTraining,
    M3Training,
    TrainingData,
    TrainingResult,
    TrainingRow,
    load_training_data,
    merge_models,
    train_embedder,
    train_m3,
)
from bge_integrations.training.m3 import subject
from bge_integrations.training.m3.loss import M3Loss
from bge_integrations.training.m3.model import M3Model
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.verdict import held_out
from tests.checkpoints import Architecture, make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import reference_m3
from tests.decoder_checkpoints import make_embedder
from tests.processes import Together
from tests.test_contrastive import column, layout

TEMPERATURE = 0.05
_VOCABULARY, _WIDTH = 40, 6
CLS, END, UNKNOWN = 1, 2, 3
UNWEIGHTED = (0, CLS, END, UNKNOWN)
# Some tokens are in several texts, some twice in one, and one is unknown.
QUERIES = [[CLS, 10, END], [CLS, 11, 12, END], [CLS, 11, 13, 11, UNKNOWN, END], [CLS, 14, 15, 16, END]]
PASSAGES = [
    [CLS, 10, END],
    [CLS, 20, 21, END],
    [CLS, 11, 22, END],
    [CLS, 12, 11, UNKNOWN, END],
    [CLS, 13, 11, 13, 23, END],
    [CLS, 14, 24, 25, 26, END],
    [CLS, 15, 16, 14, 10, 27, END],
    [CLS, 10, 28, 29, 11, 12, 30, END],
]
GROUPS = [[0, 1, 2], [3], [4, 5], [6, 7]]


class TinyEncoder(torch.nn.Module):
    """Word vectors that see their neighbours a little, with the interface of a SentenceTransformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(_VOCABULARY, _WIDTH, dtype=torch.float64)
        self.layer = torch.nn.Linear(_WIDTH, _WIDTH, dtype=torch.float64)
        self.device = torch.device("cpu")

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1)
        words = self.words(features["input_ids"]) * mask
        hidden = torch.tanh(self.layer(words + words.sum(1, keepdim=True) / mask.sum(1, keepdim=True)))
        return {"token_embeddings": hidden, "sentence_embedding": F.normalize(hidden[:, 0], dim=-1)}


def tiny(colbert_width: int = _WIDTH) -> M3Model:
    draws = np.random.default_rng(1)
    heads = {
        "sparse.weight": draws.normal(size=(1, _WIDTH)),
        "sparse.bias": np.array([0.3]),
        "colbert.weight": draws.normal(size=(colbert_width, _WIDTH)),
        "colbert.bias": draws.normal(size=colbert_width),
    }
    return M3Model(TinyEncoder(), heads)


def reference_scores(model: M3Model, queries: list[list[int]], passages: list[list[int]]) -> list[Tensor]:
    """The three scores of every pair by plain loops, each text alone, with a table of the whole vocabulary."""

    def outputs(text: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        hidden = model.encoder(column([text]))["token_embeddings"][0]
        table = torch.zeros(_VOCABULARY, dtype=torch.float64)
        for place, token in enumerate(text):
            if token not in UNWEIGHTED:
                weight = torch.relu(hidden[place] @ model.sparse.weight[0] + model.sparse.bias[0])
                table = torch.stack([torch.maximum(table[t], weight) if t == token else table[t] for t in range(40)])
        vectors = [F.normalize(model.colbert(one), dim=-1) for one in hidden[1:]]
        return F.normalize(hidden[0], dim=-1), table, torch.stack(vectors)

    asked, found = ([outputs(text) for text in texts] for texts in (queries, passages))
    dense = torch.stack([torch.stack([one[0] @ other[0] for other in found]) for one in asked])
    lexical = torch.stack([torch.stack([one[1] @ other[1] for other in found]) for one in asked])
    tokens = [
        torch.stack(
            [torch.stack([torch.stack([q @ p for p in other[2]]).max() for q in one[2]]).mean() for other in found]
        )
        for one in asked
    ]
    return [dense / TEMPERATURE, lexical / TEMPERATURE, torch.stack(tokens) / TEMPERATURE]


def cross_entropy(scores: Tensor, ignored: Tensor, targets: list[int]) -> Tensor:
    rows = [
        torch.logsumexp(row[~out], 0) - row[target] for row, out, target in zip(scores, ignored, targets, strict=True)
    ]
    return torch.stack(rows).mean()


def divergence(target: Tensor, scores: Tensor, ignored: Tensor) -> Tensor:
    rows = [
        -(torch.softmax(t[~out].detach(), 0) * torch.log_softmax(s[~out], 0)).sum()
        for t, s, out in zip(target, scores, ignored, strict=True)
    ]
    return torch.stack(rows).mean()


def reference_loss(
    scores: list[Tensor],
    *,
    ignored: Tensor | None = None,
    distils: bool = False,
    weights: tuple[float, float, float] = (1, 0.3, 1),
    shares: tuple[float, float, float] = (1, 0.1, 1),
) -> Tensor:
    """The paper's formulas of section 3.3, term by term."""
    ignored = torch.zeros_like(scores[0], dtype=torch.bool) if ignored is None else ignored
    targets = [group[0] for group in GROUPS]
    together = weights[0] * scores[0] + weights[1] * scores[1] + weights[2] * scores[2]
    single = [cross_entropy(one, ignored, targets) for one in scores]
    loss = (
        shares[0] * single[0]
        + shares[1] * single[1]
        + shares[2] * single[2]
        + cross_entropy(together, ignored, targets)
    ) / 4
    if not distils:
        return loss
    taught = [share * divergence(together, one, ignored) for share, one in zip(shares, scores, strict=True)]
    return (loss + (taught[0] + taught[1] + taught[2]) / 3) / 2


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def loss_of(model: Any, chosen: Layout, *, distils: bool = False, **options: Any) -> Tensor:  # noqa: ANN401
    loss = M3Loss(model, unweighted=UNWEIGHTED, temperature=TEMPERATURE, **options)
    loss.distils = distils
    found: Tensor = loss([column(QUERIES), column(PASSAGES)], chosen)
    return found


def assert_equal(found: Tensor, expected: Tensor, one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Compares two losses and the gradients that they have."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert theirs.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10)


class TestLoss:
    @pytest.mark.parametrize("distils", [False, True])
    @pytest.mark.parametrize("colbert_width", [_WIDTH, 4])
    def test_loss_and_gradients_are_those_of_the_papers_formulas(self, distils: bool, colbert_width: int) -> None:
        one, other = tiny(colbert_width), tiny(colbert_width)
        expected = reference_loss(reference_scores(other, QUERIES, PASSAGES), distils=distils)
        assert_equal(loss_of(one, layout(GROUPS), distils=distils), expected, one, other)

    def test_passages_can_stand_in_any_order(self) -> None:
        """As those of several processes do."""
        order = [7, 2, 5, 0, 3, 6, 1, 4]
        place = {passage: at for at, passage in enumerate(order)}
        one, other = tiny(), tiny()
        expected = reference_loss(reference_scores(other, QUERIES, PASSAGES), distils=True)
        loss = M3Loss(one, unweighted=UNWEIGHTED, temperature=TEMPERATURE)
        loss.distils = True
        groups = [[place[passage] for passage in group] for group in GROUPS]
        found = loss([column(QUERIES), column([PASSAGES[passage] for passage in order])], layout(groups))
        assert_equal(found, expected, one, other)

    def test_the_weights_can_be_equal_as_in_an_earlier_preprint(self) -> None:
        one, other = tiny(), tiny()
        weights = (1.0, 1.0, 1.0)
        expected = reference_loss(
            reference_scores(other, QUERIES, PASSAGES), distils=True, weights=weights, shares=weights
        )
        found = loss_of(one, layout(GROUPS), distils=True, score_weights=weights, loss_weights=weights)
        assert_equal(found, expected, one, other)

    def test_a_score_without_weights_is_not_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> Tensor:
            raise AssertionError

        monkeypatch.setattr("bge_integrations.training.m3.loss.token_scores", refuse)
        one, other = tiny(), tiny()
        weights, shares = (1.0, 0.3, 0.0), (1.0, 0.1, 0.0)
        scores = reference_scores(other, QUERIES, PASSAGES)
        expected = reference_loss(scores, distils=True, weights=weights, shares=shares)
        found = loss_of(one, layout(GROUPS), distils=True, score_weights=weights, loss_weights=shares)
        torch.testing.assert_close(found, expected)
        found.backward()  # type: ignore[no-untyped-call]
        assert one.colbert.weight.grad is not None
        assert not one.colbert.weight.grad.any()

    def test_rows_of_their_own_and_other_answers_are_left_out_of_every_term(self) -> None:
        """Such rows make FlagEmbedding's loss of the sum 0, or fail."""
        ignored = torch.zeros((4, 8), dtype=torch.bool)
        ignored[0, [3, 4, 5, 6, 7]] = True
        ignored[2, [0, 7]] = True
        chosen = layout(
            GROUPS,
            is_alone=torch.tensor([True, False, False, False]),
            known=torch.tensor([[-1, -1], [-1, -1], [0, 7], [-1, -1]]),
        )
        one, other = tiny(), tiny()
        expected = reference_loss(reference_scores(other, QUERIES, PASSAGES), ignored=ignored, distils=True)
        assert_equal(loss_of(one, chosen, distils=True), expected, one, other)

    def test_a_teachers_scores_act_in_every_term(self) -> None:
        teacher = torch.tensor([[2.0, 1, -1], [0.5, 0, 0], [1, 3, 0], [0, -2, 0]], dtype=torch.float64)
        one, other = tiny(), tiny()
        scores = reference_scores(other, QUERIES, PASSAGES)
        together = scores[0] + 0.3 * scores[1] + scores[2]
        expected = torch.zeros((), dtype=torch.float64)
        for weight, each in zip((1, 0.1, 1, 1), (*scores, together), strict=True):
            for row, group in enumerate(GROUPS):
                target = teacher[row, : len(group)].softmax(-1)
                own = F.cross_entropy(each[row : row + 1], torch.tensor([group[0]]))
                expected = expected + weight * (own - (target * each[row, group].log_softmax(-1)).sum()) / 16
        found = loss_of(one, layout(GROUPS, teacher=teacher), distillation="kl_div")
        assert_equal(found, expected, one, other)

    @pytest.mark.parametrize("in_memory", [10_000, 0])
    def test_parts_of_a_batch_give_the_same_gradients(self, in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Forward passes of one text, blocks of few products, and with a limit of 0 cached gradients."""
        monkeypatch.setattr("bge_integrations.training.m3.loss.SCORES_AT_ONCE", 60)
        one, other = tiny(), tiny()
        expected = reference_loss(reference_scores(other, QUERIES, PASSAGES), distils=True)
        budget = Budget(mini_batch_tokens=8, tokens_in_memory=in_memory)
        assert_equal(loss_of(one, layout(GROUPS), distils=True, budget=budget), expected, one, other)

    def test_no_tensor_has_the_size_of_the_vocabulary(self) -> None:
        """With bge-m3's vocabulary, a table of the 12 texts alone would have 3 million numbers."""
        seen: list[int] = []

        class Sizes(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
                found = func(*args, **(kwargs or {}))
                if isinstance(found, Tensor):
                    seen.append(found.numel())
                return found

        model = tiny()
        model.encoder.words = torch.nn.Embedding(250_002, _WIDTH, dtype=torch.float64)
        rename = {token: token * 5000 for token in range(10, 31)}
        columns = [
            column([[rename.get(token, token) for token in text] for text in texts]) for texts in (QUERIES, PASSAGES)
        ]
        loss = M3Loss(model, unweighted=UNWEIGHTED, temperature=TEMPERATURE)
        with Sizes():
            value = loss(columns, layout(GROUPS))
        value.backward()
        assert 0 < max(seen) < 5000


_PROCESS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.test_training_m3 import GROUPS, PASSAGES, QUERIES, TEMPERATURE, UNWEIGHTED, column, gradients, layout, tiny
from bge_integrations.training.m3.loss import M3Loss
from bge_integrations.training.machine.memory import Budget
result = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
# The second passage of the first process is there in the second one too; the rows are 3 and 1.
queries = [QUERIES[:3], QUERIES[3:]][rank]
passages = [PASSAGES[:6], [PASSAGES[1], *PASSAGES[6:]]][rank]
groups = [GROUPS[:3], [[1, 2, 0]]][rank]
keys = [[0, 1, 2, 3, 4, 5], [1, 6, 7]][rank]
found = []
for tokens_in_memory in (10_000, 0):  # without and with cached gradients
    model = tiny()
    budget = Budget(mini_batch_tokens=8, tokens_in_memory=tokens_in_memory)
    loss = M3Loss(DistributedDataParallel(model), unweighted=UNWEIGHTED, temperature=TEMPERATURE, budget=budget)
    loss.distils = True
    value = loss([column(queries), column(passages)], layout(groups, keys))
    value.backward()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    found.append((mean / 2, gradients(model)))
if rank == 0:
    torch.save(found, result)
dist.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_one(tmp_path: Path, together: Together) -> None:
    result = tmp_path / "result.pt"
    ended = together(_PROCESS, result)
    assert ended.codes == [0, 0], ended.said
    model = tiny()
    expected = loss_of(model, layout([*GROUPS[:3], [6, 7, 1]]), distils=True)
    expected.backward()  # type: ignore[no-untyped-call]
    results = torch.load(result)
    assert len(results) == 2
    for value, found in results:
        torch.testing.assert_close(value, expected.detach())
        for one, other in zip(found, gradients(model), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


_WORDS = ("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France", "vector", "store", "Berlin")
_QUICK = M3Training(
    epochs=2, batch_size=8, learning_rate=2e-3, temperature=0.05, negatives=2, precision="float32", seed=3
)
TEXTS = ["fox is water", "dog", "", "not Berlin, the capital of France " * 9]


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draws = random.Random(0)
    rows = [
        TrainingRow(
            query=f"about {word}",
            pos=tuple(f"{word} is {other}" for other in draws.sample(_WORDS, draws.randint(1, 2))),
            neg=tuple(f"not {other}" for other in draws.sample(_WORDS, draws.randint(0, 3))),
        )
        for word in _WORDS
        for _ in range(2)
    ]
    return TrainingData(rows, "words")


@pytest.fixture(scope="module")
def validation() -> RetrievalData:
    return RetrievalData(
        {f"q{word}": f"about {word}" for word in _WORDS},
        {f"d{word}": f"{word} is water" for word in _WORDS},
        {f"q{word}": {f"d{word}": 1} for word in _WORDS},
    )


@pytest.fixture(scope="module")
def tuned(bge_m3: Path, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    return train_m3(data, EncoderSettings(model_name=str(bge_m3), device="cpu"), output, settings=_QUICK)


def heads(folder: Path) -> dict[str, Tensor]:
    """What FlagEmbedding's `EncoderOnlyEmbedderM3Runner.get_model` loads into two layers."""
    found: dict[str, Tensor] = {}
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", 32)):
        layer = torch.nn.Linear(32, outputs)
        layer.load_state_dict(torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True))
        found |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    return found


def all_weights(folder: Path) -> dict[str, Tensor]:
    return {**heads(folder), **SentenceTransformer(str(folder), device="cpu").state_dict()}


class TestTraining:
    def test_the_loss_falls_and_all_three_outputs_learn(self, bge_m3: Path, tuned: TrainingResult) -> None:
        losses = [tuned.losses[step] for step in sorted(tuned.losses)]
        assert tuned.steps == len(losses) == 6
        assert losses[-1] < losses[0]
        before, after = all_weights(bge_m3), all_weights(tuned.output)
        assert before.keys() == after.keys()
        unread = {name for name, value in before.items() if torch.equal(value, after[name])}
        assert all("pooler" in name for name in unread)

    def test_the_saved_folder_gives_what_plain_transformers_and_the_frameworks_get_of_it(
        self, tuned: TrainingResult
    ) -> None:
        from bge_integrations.langchain import BgeM3Reranker, BgeSparseEmbeddings, HuggingFaceBgeEmbeddings
        from bge_integrations.llama_index import BgeM3Rerank, BgeSparseEmbedding

        folder = tuned.output
        expected = reference_m3(folder, TEXTS)
        encoder = BgeM3Encoder(folder, device="cpu", on_truncation="ignore")
        found = encoder.encode_documents(TEXTS)
        assert_outputs(found, expected)
        plain = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(plain, expected.dense, atol=1e-5)
        settings: dict[str, Any] = {"model_name": str(folder), "on_truncation": "ignore"}
        sparse = BgeSparseEmbeddings(**settings).embed_documents(TEXTS)
        for one, wanted in zip(sparse, expected.sparse, strict=True):
            assert dict(zip(one.indices, one.values, strict=True)) == pytest.approx(wanted, abs=1e-5)
        assert BgeSparseEmbedding(**settings).get_query_embedding(TEXTS[0]) == pytest.approx(
            expected.sparse[0], abs=1e-5
        )
        assert HuggingFaceBgeEmbeddings(**settings).embed_query("dog") == pytest.approx(expected.dense[1], abs=1e-5)
        query = reference_m3(folder, ["about fox"])
        dense = expected.dense @ query.dense[0]
        shared = [sum(weight * one.get(id_, 0) for id_, weight in query.sparse[0].items()) for one in expected.sparse]
        tokens = np.array([(query.colbert[0] @ rows.T).max(1).mean() for rows in expected.colbert])
        scores = 0.4 * dense + 0.2 * np.array(shared) + 0.4 * tokens
        assert encoder.score("about fox", TEXTS) == pytest.approx(scores, abs=1e-5)
        settings["weights"] = (0.4, 0.2, 0.4)
        ranked = BgeM3Reranker(**settings, top_n=4).compress_documents(
            [Document(page_content=text) for text in TEXTS], "about fox"
        )
        by_text = {one.page_content: one.metadata["relevance_score"] for one in ranked}
        assert [by_text[text] for text in TEXTS] == pytest.approx(scores, abs=1e-5)
        nodes = BgeM3Rerank(**settings, top_n=4).postprocess_nodes(
            [NodeWithScore(node=TextNode(text=text)) for text in TEXTS], query_str="about fox"
        )
        assert {one.node.get_content(): one.score for one in nodes} == pytest.approx(by_text, abs=1e-5)

    def test_the_trained_module_gives_what_is_saved(
        self, bge_m3: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept: list[tuple[Any, ...]] = []
        original = subject.m3_subject

        def keep(*given: Any) -> Any:  # noqa: ANN401
            kept.append(given)
            return original(*given)

        monkeypatch.setattr(subject, "m3_subject", keep)
        settings = dataclasses.replace(_QUICK, max_steps=2)
        result = train_m3(
            data, EncoderSettings(model_name=str(bge_m3), device="cpu"), tmp_path / "out", settings=settings
        )
        model, start = kept[0][:2]
        with BgeM3Encoder(result.output, device="cpu", on_truncation="ignore") as encoder:
            saved = encoder.encode_documents(TEXTS)
        assert_outputs(saved, subject.outputs(model, start, TEXTS))

    def test_a_killed_run_goes_on_and_self_distillation_begins_at_its_step(
        self, bge_m3: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, distil_after=4)
        start = EncoderSettings(model_name=str(bge_m3), device="cpu")
        without = dataclasses.replace(_QUICK, self_distillation=False)
        plain = train_m3(data, start, tmp_path / "plain", settings=without)
        whole = train_m3(data, start, tmp_path / "whole", settings=settings)
        assert [whole.losses[step] == pytest.approx(plain.losses[step]) for step in range(1, 7)] == [True] * 4 + [
            False
        ] * 2

        class Killed(BaseException):
            pass

        def kill(step: int, _: object) -> None:
            if step == 5:
                raise Killed

        with pytest.raises(Killed):
            train_m3(data, start, tmp_path / "killed", settings=settings, on_log=kill)
        again = train_m3(data, start, tmp_path / "killed", settings=settings, resume=True)
        assert again.losses == pytest.approx(whole.losses, abs=1e-6)
        expected, found = all_weights(whole.output), all_weights(again.output)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)

    def test_the_best_checkpoint_becomes_the_model(
        self, bge_m3: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path
    ) -> None:
        start = EncoderSettings(model_name=str(bge_m3), device="cpu")
        settings = dataclasses.replace(_QUICK, evaluate_every=2)
        result = train_m3(data, start, tmp_path / "out", settings=settings, validation=validation)
        assert list(result.validation) == [2, 4, 6]
        with BgeM3Encoder(result.output, device="cpu") as encoder:
            report = evaluate_retrieval(encoder, validation, metrics=["ndcg@10"], output="mixed")
        assert report.metrics["ndcg@10"] == pytest.approx(max(result.validation.values()), abs=1e-6)

    def test_parts_of_a_batch_give_what_the_whole_batch_gives(
        self, bge_m3: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        start = EncoderSettings(model_name=str(bge_m3), device="cpu")
        found = []
        for tokens in (100_000, 0):
            settings = dataclasses.replace(_QUICK, max_steps=2, tokens_in_memory=tokens, mini_batch_tokens=40)
            found.append(all_weights(train_m3(data, start, tmp_path / f"{tokens}", settings=settings).output))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, atol=2e-4, rtol=0)

    def test_the_heads_alone_can_be_trained(self, bge_m3: Path, data: TrainingData, tmp_path: Path) -> None:
        start = EncoderSettings(model_name=str(bge_m3), device="cpu")
        settings = dataclasses.replace(_QUICK, max_steps=3, train_encoder=False)
        result = train_m3(data, start, tmp_path / "out", settings=settings)
        before, after = all_weights(bge_m3), all_weights(result.output)
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert changed == set(heads(bge_m3))

    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_another_encoder_gets_new_heads_with_a_warning(
        self, architecture: Architecture, data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        base = make_checkpoint(tmp_path / "plain-base", architecture)
        result = train_m3(
            data,
            EncoderSettings(model_name=str(base), device="cpu"),
            tmp_path / "out",
            settings=dataclasses.replace(_QUICK, max_steps=2),
        )
        assert "no heads for lexical weights and token vectors" in caplog.text
        assert "set distil_after" in caplog.text
        assert_outputs(
            BgeM3Encoder(result.output, device="cpu", on_truncation="ignore").encode_documents(TEXTS),
            reference_m3(result.output, TEXTS),
        )

    def test_training_starts_from_the_base_model_of_bge_m3(self, data: TrainingData, tmp_path: Path) -> None:
        base = make_checkpoint(tmp_path / "bge-m3-retromae", "xlm-roberta")
        start, quick = EncoderSettings(model_name=str(base), device="cpu"), dataclasses.replace(_QUICK, max_steps=1)
        result = train_m3(data, start, tmp_path / "m3", settings=quick)
        found = BgeM3Encoder(result.output, device="cpu", on_truncation="ignore").encode_documents(TEXTS)
        assert_outputs(found, reference_m3(result.output, TEXTS))
        settings = EmbedderTraining(max_steps=1, batch_size=8, precision="float32")
        dense = train_embedder(data, start, tmp_path / "dense", settings=settings)
        with BgeEncoder(dense.output, device="cpu", on_truncation="ignore") as encoder:
            vectors = encoder.encode_documents(TEXTS)
        np.testing.assert_allclose(vectors, reference_vectors(dense.output, TEXTS), atol=1e-5)

    def test_a_decoder_is_refused(self, data: TrainingData, tmp_path: Path) -> None:
        folder = make_embedder(tmp_path, "bge-code-v1")
        with pytest.raises(UnsupportedModelError, match="can't get the heads of bge-m3"):
            train_m3(data, EncoderSettings(model_name=str(folder), device="cpu"), tmp_path / "out")
        assert not (tmp_path / "out.training").exists()

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"matryoshka_dims": [8]}, "does not go with bge-m3"),
            ({"score_weights": (1, 1)}, r"score_weights=\(1, 1\) must be three numbers"),
            ({"loss_weights": (1, -1, 1)}, "must be three numbers of at least 0"),
            ({"score_weights": (0, 0, 0)}, "score_weights are all 0"),
            ({"distil_after": -1}, "distil_after=-1 must be 0 or more"),
        ],
    )
    def test_settings_are_checked(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            M3Training(**changes)


def assert_outputs(found: Any, expected: Any) -> None:  # noqa: ANN401 - outputs of the package, or the reference's
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
    for ours, theirs in zip(found.sparse, expected.sparse, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for rows, others in zip(found.colbert, expected.colbert, strict=True):
        np.testing.assert_allclose(rows, others, atol=1e-5)
    assert sum(map(len, expected.sparse)) > 3


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [
        {"query": f"about {one} {other}", "pos": [f"{one} is {other}"], "neg": [f"{other} is not {one}"]}
        for one in _WORDS
        for other in _WORDS[:6]
        if one != other
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def train(*arguments: object) -> Any:  # noqa: ANN401 - typer's result
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--device", "cpu"])


class TestCommand:
    def test_rows_become_a_folder_and_a_verdict_on_each_output(self, bge_m3: Path, rows: Path, tmp_path: Path) -> None:
        output = tmp_path / "tuned"
        quick = ("--max-steps", 6, "--batch-size", 8, "--learning-rate", "1e-3", "--distil-after", 3)
        done = train(rows, "--model", bge_m3, "-o", output, "--m3", *quick, "--prepare", "float32", "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        verdict = found["verdict"]
        everything = load_training_data(rows)
        test = everything.split(by="passage", validation=0.1, test=0.1, seed=0).test
        assert test is not None
        data = held_out(test, everything)
        for folder, side in ((bge_m3, "before"), (output, "after")):
            encoder = BgeM3Encoder(folder, device="cpu")
            expected = evaluate_retrieval(encoder, data, depth=100, output="mixed").metrics
            assert verdict[side] == pytest.approx(expected, abs=1e-4)
            for name in ("dense", "sparse", "colbert"):
                alone = evaluate_retrieval(encoder, data, depth=100, output=name).metrics["ndcg@10"]
                assert verdict["outputs"][name][side] == pytest.approx(alone, abs=1e-4)
        assert "the trained model (sparse)" in verdict["words"]
        assert verdict["words"] in (output / "README.md").read_text(encoding="utf-8")
        record = json.loads((output / "bge_training.json").read_text(encoding="utf-8"))
        assert record["settings"]["distil_after"] == 3
        one, other = (
            BgeM3Encoder(folder, device="cpu").encode_queries(["about fox"]) for folder in (output, found["prepared"])
        )
        assert one.colbert is not None
        assert other.colbert is not None
        np.testing.assert_allclose(one.colbert[0], other.colbert[0], atol=1e-5)

    def test_a_mean_with_the_start_keeps_the_heads(self, bge_m3: Path, rows: Path, tmp_path: Path) -> None:
        output = tmp_path / "tuned"
        quick = ("--max-steps", 4, "--batch-size", 8, "--learning-rate", "1e-2", "--merge", "0.25", "--json")
        done = train(rows, "--model", bge_m3, "-o", output, "--m3", *quick)
        assert done.exit_code == 0, done.output
        merged = json.loads(done.stdout)["merged"]
        everything = load_training_data(rows)
        part = everything.split(by="passage", validation=0.1, test=0.1, seed=0).validation
        assert part is not None
        with BgeM3Encoder(output, device="cpu") as encoder:
            found = evaluate_retrieval(encoder, held_out(part, everything), depth=10, output="mixed")
        assert found.metrics["ndcg@10"] == pytest.approx(merged["figures"][f"{merged['share']:g}"], abs=1e-4)

    def test_the_mean_of_two_is_that_of_all_weights(self, bge_m3: Path, tuned: TrainingResult, tmp_path: Path) -> None:
        mean = all_weights(merge_models([bge_m3, tuned.output], [0.3, 0.7], tmp_path / "mean"))
        one, other = all_weights(bge_m3), all_weights(tuned.output)
        for name, value in one.items():
            if value.is_floating_point():
                torch.testing.assert_close(mean[name], 0.3 * value + 0.7 * other[name], atol=1e-6, rtol=0)

    def test_a_start_without_heads_is_judged_by_its_dense_vectors(
        self, bge_small_en: Path, rows: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "tuned"
        done = train(rows, "--model", bge_small_en, "-o", output, "--m3", "--max-steps", 2, "--batch-size", 8)
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        assert re.search(r"the trained model \(all outputs\) (is \w+ than|and) the start \(dense\)", said)
        assert "dense alone" in said
        assert "sparse alone" not in said

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--m3", "--distil-from", "M"], "--m3 does not go with distil_from='M'"),
            (["--distil-after", "3"], "add --m3, or leave it out"),
        ],
    )
    def test_options_that_do_not_fit_are_named(
        self, bge_m3: Path, rows: Path, tmp_path: Path, arguments: list[str], said: str
    ) -> None:
        done = train(rows, "--model", bge_m3, "-o", tmp_path / "out", *arguments)
        assert isinstance(done.exception, SettingsError)
        assert said in str(done.exception)
