"""The forward pass of training: without padding, with the vectors and gradients of transformers' own."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from bge_integrations.backend.engines.architecture import describe_encoder
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import EmbedderTraining, TrainingData, TrainingRow, train_embedder
from bge_integrations.training.embedders.unpadded import without_padding
from bge_integrations.training.trainer.starting import Start, open_start
from tests.checkpoints import make_checkpoint
from tests.test_engines import LENGTHS, SHAPES, Shape, batch_of, random_model

Found = tuple[Tensor, dict[str, Tensor]]

ROWS = ("cls", "tokens")
TEXTS = ["the fox", "a very long text about water, light and plants", "the dog", "Paris is the capital of France"]


class Inside(torch.nn.Module):
    """A transformers model, with the interface of sentence-transformers' `Transformer`."""

    module_output_name = "token_embeddings"

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.auto_model = model

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, mask = features["input_ids"], features["attention_mask"]
        return {"token_embeddings": self.auto_model(input_ids=ids, attention_mask=mask).last_hidden_state}


def column(lengths: list[int], pad_id: int, device: str) -> dict[str, Tensor]:
    batch = batch_of(lengths)
    ids = torch.from_numpy(batch.padded(pad_id).astype("int64"))
    return {"input_ids": ids.to(device), "attention_mask": torch.from_numpy(batch.is_token).long().to(device)}


def rows_and_gradients(inside: Inside, features: dict[str, Tensor], rows: str, precision: torch.dtype) -> Found:
    """The rows that are read, and the gradients of a loss that weights all their numbers differently."""
    inside.zero_grad()
    device = features["input_ids"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden = inside(features)["token_embeddings"]
    read = hidden[:, 0] if rows == "cls" else hidden[features["attention_mask"].bool()]
    weights = torch.linspace(-1, 1, read.numel(), device=read.device).view_as(read)
    (read.float() * weights).mean().backward()
    gradients = {name: one.grad.clone() for name, one in inside.named_parameters() if one.grad is not None}
    return read.detach().float(), gradients


def both(shape: Shape, rows: str, device: str, precision: torch.dtype) -> Iterator[tuple[Found, Found, Found]]:
    """What transformers gives in float32, what it gives in a precision, and what we give in it, for each batch."""
    inside = Inside(copy.deepcopy(random_model(shape)).to(device)).eval()
    described = describe_encoder(inside.auto_model)
    assert described is not None
    for lengths in LENGTHS.values():
        features = column(sorted(lengths), described.pad_id, device)
        exact = rows_and_gradients(inside, features, rows, torch.float32)
        expected = rows_and_gradients(inside, features, rows, precision)
        with without_padding([inside], described, cls_only=rows == "cls"):
            found = rows_and_gradients(inside, features, rows, precision)
        assert found[1].keys() == expected[1].keys()
        yield exact, expected, found


def compare_exactly(shape: Shape, rows: str, device: str, tolerance: float) -> None:
    for (wanted, gradients), _, (found, others) in both(shape, rows, device, torch.float32):
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
        for name, gradient in gradients.items():
            # A bias of keys moves all scores of a row alike, so its gradient is rounding.
            scale = max(float(gradient.abs().max()), 1e-4)
            torch.testing.assert_close(others[name], gradient, atol=tolerance * scale, rtol=0, msg=name)


def compare_in_bfloat16(shape: Shape, rows: str, device: str) -> None:
    """We may be as far from float32 as transformers is."""
    for (wanted, gradients), (near, theirs), (found, ours) in both(shape, rows, device, torch.bfloat16):
        assert distance([found], [wanted]) < 1.5 * distance([near], [wanted]) + 1e-3
        own = distance([ours[name] for name in gradients], gradients.values())
        assert own < 1.5 * distance([theirs[name] for name in gradients], gradients.values()) + 1e-2


def distance(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The norm of the difference, as a part of the norm of what is wanted."""
    pairs = list(zip(found, wanted, strict=True))
    apart = sum(float((one - other).double().square().sum()) for one, other in pairs)
    return math.sqrt(apart / sum(float(other.double().square().sum()) for _, other in pairs))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [SHAPES[0], *SHAPES[4:5], *SHAPES[7:]], ids=str)
def test_rows_and_gradients_are_those_of_transformers(shape: Shape, rows: str) -> None:
    compare_exactly(shape, rows, "cpu", 2e-4)


@pytest.mark.parametrize("rows", ROWS)
def test_in_bfloat16_they_are_as_near_as_those_of_transformers(rows: str) -> None:
    compare_in_bfloat16(Shape("own", hidden_size=64, heads=2, layers=2), rows, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
class TestCuda:
    def test_rows_and_gradients_are_those_of_transformers(self, shape: Shape, rows: str) -> None:
        compare_exactly(shape, rows, "cuda", 2e-3)

    def test_in_bfloat16_they_are_as_near_as_those_of_transformers(self, shape: Shape, rows: str) -> None:
        compare_in_bfloat16(shape, rows, "cuda")


def opened(folder: Path, *, attention_dropout: bool = False) -> Start:
    return open_start(EncoderSettings(model_name=str(folder), device="cpu"), attention_dropout=attention_dropout)


def encode(model: SentenceTransformer) -> Any:  # noqa: ANN401
    return model.encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_a_model_gives_the_same_vectors_and_is_left_as_it_was(pooling: str, tmp_path: Path) -> None:
    start = opened(make_checkpoint(tmp_path / "model", "xlm-roberta", modules=(pooling, "normalize")))
    before = encode(start.model)
    with without_padding(start.model, start.encoder, cls_only=start.pooling == "cls"):
        assert "forward" in vars(start.model[0])
        torch.testing.assert_close(encode(start.model), before, atol=1e-6, rtol=0)
    assert "forward" not in vars(start.model[0])
    torch.testing.assert_close(encode(start.model), before)


def test_other_architectures_are_computed_as_they_are(bge_small_en: Path) -> None:
    start = opened(bge_small_en)
    with without_padding(start.model, None, cls_only=True):
        assert "forward" not in vars(start.model[0])


@pytest.mark.parametrize("attention_dropout", [False, True])
def test_dropout_acts_in_training_only(attention_dropout: bool, bge_small_en: Path) -> None:
    start = opened(bge_small_en, attention_dropout=attention_dropout)
    model, features = start.model, start.model.preprocess(TEXTS)
    inside = model[0].auto_model
    if attention_dropout:
        # Only that of attention is left.
        inside.embeddings.dropout.p = 0.0
        assert inside.encoder.layer[0].attention.self.dropout.p == pytest.approx(0.1)
    with without_padding(model, start.encoder, cls_only=True):
        found = [[model(dict(features))["sentence_embedding"] for _ in range(2)] for model in (model.train(),)]
        ((one, other),) = found
        assert not torch.allclose(one, other, atol=1e-4)
        model.eval()
        one, other = (model(dict(features))["sentence_embedding"] for _ in range(2))
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens_in_memory", [100_000, 0])
def test_training_on_a_gpu_has_the_losses_of_the_cpu(tokens_in_memory: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", modules=("cls", "normalize"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Its masks are others on another device.
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0}), encoding="utf-8")
    words = ("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France", "vector", "store")
    rows = [TrainingRow(f"about {word}", (f"{word} is water",), (f"not {word}", "not this")) for word in words]
    losses = {}
    for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        trained = train_embedder(
            TrainingData(rows, "words"),
            EncoderSettings(model_name=str(folder), device=device),
            tmp_path / f"{device}-{precision}",
            settings=EmbedderTraining(
                max_steps=6,
                batch_size=4,
                learning_rate=1e-3,
                temperature=0.05,
                precision=precision,
                mini_batch_tokens=40,
                tokens_in_memory=tokens_in_memory,
            ),
        )
        losses[device, precision] = list(trained.losses.values())
    assert losses["cuda", "float32"] == pytest.approx(losses["cpu", "float32"], abs=2e-3)
    assert losses["cuda", "bfloat16"] == pytest.approx(losses["cpu", "float32"], abs=0.2)
