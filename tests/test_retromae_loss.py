"""RetroMAE's loss and gradients against a slow computation: text by text, position by position, head by head."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bge_integrations.settings import EncoderSettings
from bge_integrations.training.embedders.unpadded import without_padding
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.retromae import vocabulary_loss as of_vocabulary
from bge_integrations.training.retromae.batches import PieceCollator
from bge_integrations.training.retromae.masks import visible_tokens
from bge_integrations.training.retromae.model import RetroMae
from bge_integrations.training.retromae.pieces import Facts
from bge_integrations.training.retromae.subject import build_model
from bge_integrations.training.retromae.vocabulary_loss import vocabulary_loss
from bge_integrations.training.retromae.words import WordTable
from bge_integrations.training.rows.batches import Epochs
from bge_integrations.training.settings import RetroMaeTraining
from bge_integrations.training.trainer.starting import open_start
from tests.checkpoints import Architecture, make_checkpoint
from tests.processes import Together

_TEXTS = (
    "The quick brown fox jumps over the lazy dog while the vector store answers questions.",
    "Retrieval with dense vectors finds passages",
    "北京 天气 很好",
    "dog",
    "Emoji and accents: naïve café, 12345 67890, punctuation! (brackets)",
)
_WHOLE = Budget(mini_batch_tokens=10_000, tokens_in_memory=10_000, pads=False)


class Given:
    """Pieces that are in memory."""

    facts: Facts

    def __init__(self, tokenizer: Any, texts: tuple[str, ...]) -> None:  # noqa: ANN401
        self._ids = [torch.tensor(ids).numpy() for ids in tokenizer(list(texts))["input_ids"]]

    def __getitem__(self, number: int) -> Any:  # noqa: ANN401
        return self._ids[number]


def made(folder: Path, budget: Budget = _WHOLE) -> tuple[RetroMae, dict[str, Tensor], Any]:
    start = open_start(EncoderSettings(model_name=str(folder), device="cpu"))
    model = build_model(start, RetroMaeTraining(), budget, "it", warns=False)
    # The weights of new parts are small, and biases 0: with larger ones, every part of the sum can be seen.
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if not name.startswith("transformer."):
            torch.nn.init.normal_(weight, std=0.3)
    tokenizer = start.model.tokenizer
    pieces: Any = Given(tokenizer, _TEXTS)
    table = WordTable.of(tokenizer, "it")
    collate = PieceCollator(pieces, table, masking=0.3, pad_id=start.pad_id, seed=0, epochs=Epochs())
    return model, collate([{"row": row} for row in range(len(_TEXTS))]), start


def norm(x: Tensor, weights: Any, eps: float) -> Tensor:  # noqa: ANN401
    centred = x - x.mean()
    found: Tensor = centred / torch.sqrt((centred * centred).mean() + eps) * weights.weight + weights.bias
    return found


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def cross_entropy(row: Tensor, model: RetroMae, table: Tensor, wanted: int, eps: float) -> Tensor:
    head = model.head
    x = norm(gelu(head.dense.weight @ row + head.dense.bias), head.norm, eps)
    logits = torch.stack([table[word] @ x + head.bias[word] for word in range(len(table))])
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[wanted]


def reference(model: RetroMae, batch: dict[str, Tensor], heads: int, eps: float) -> Tensor:
    """The formulas of the paper, with transformers' own encoder and embedding layer for each text alone."""
    inside: Any = model.transformer
    encoder, decoder = inside.auto_model, model.decoder
    table = encoder.embeddings.word_embeddings.weight
    is_token = batch["attention_mask"].bool()
    seen = visible_tokens(batch["words"], is_token, 0.5, torch.Generator().manual_seed(int(batch["seed"])))
    of_encoder, of_decoder = [], []
    for text in range(len(is_token)):
        length = int(is_token[text].sum())
        ids, read = batch["input_ids"][text, :length], batch["read_ids"][text, :length]
        hidden = encoder(input_ids=read[None]).last_hidden_state[0]
        chosen = [place for place in range(length) if batch["is_chosen"][text, place]]
        of_encoder += [cross_entropy(hidden[place], model, table, int(ids[place]), eps) for place in chosen]
        c = hidden[0]
        known = [c, *encoder.embeddings(input_ids=ids[None])[0][1:]]
        asked = encoder.embeddings(inputs_embeds=c.expand(1, length, -1))[0]
        keys = [decoder.key.weight @ x + decoder.key.bias for x in known]
        values = [decoder.value.weight @ x + decoder.value.bias for x in known]
        size = len(c) // heads
        for place in range(1, length - 1):
            query = decoder.query.weight @ asked[place] + decoder.query.bias
            contexts = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                others = [other for other in range(length) if seen[text, place, other]]
                exponents = [torch.exp(query[part] @ keys[other][part] / math.sqrt(size)) for other in others]
                whole = sum(exponents[1:], exponents[0])
                weighted = [e / whole * values[other][part] for e, other in zip(exponents, others, strict=True)]
                contexts.append(sum(weighted[1:], weighted[0]))
            attended = decoder.output.weight @ torch.cat(contexts) + decoder.output.bias
            x = norm(asked[place] + attended, decoder.attention_norm, eps)
            inner = gelu(decoder.inner.weight @ x + decoder.inner.bias)
            x = norm(x + decoder.outer.weight @ inner + decoder.outer.bias, decoder.output_norm, eps)
            of_decoder.append(cross_entropy(x, model, table, int(ids[place]), eps))
    assert of_encoder
    return torch.stack(of_encoder).mean() + torch.stack(of_decoder).mean()


def gradients(model: RetroMae, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture: Architecture = request.param
    return make_checkpoint(tmp_path_factory.mktemp("retromae") / "it", architecture, hidden_size=16, heads=2)


class TestLoss:
    @pytest.mark.parametrize(
        ("unpadded", "dtype", "tolerance"), [(False, torch.float64, 1e-9), (True, torch.float32, 2e-4)]
    )
    def test_loss_and_gradients_are_those_of_the_formulas(
        self, folder: Path, unpadded: bool, dtype: torch.dtype, tolerance: float
    ) -> None:
        model, batch, start = made(folder)
        model.to(dtype).eval()
        lengths = batch["attention_mask"].sum(1)
        assert len(set(lengths.tolist())) >= 4
        expected = reference(model, batch, heads=2, eps=start.encoder.norm_eps)
        wanted = gradients(model, expected)
        with without_padding(start.model, start.encoder, cls_only=False) if unpadded else nullcontext():
            loss = model(batch)
            found = gradients(model, loss)
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=tolerance / 100)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            # A bias of keys moves all scores of a row alike, so its gradient is rounding.
            scale = max(float(gradient.abs().max()), 1e-4)
            torch.testing.assert_close(found[name], gradient, atol=tolerance * scale, rtol=0, msg=name)
        parts = model.losses
        assert float(parts["encoder_loss"] + parts["decoder_loss"]) == pytest.approx(float(loss.detach()))

    def test_the_vector_alone_reaches_the_decoder(self, folder: Path) -> None:
        """Rows of the encoder other than the first one have no part in the decoder's loss."""
        model, batch, _ = made(folder)
        model.eval()
        rows: list[Tensor] = []
        inside: Any = model.transformer
        original = inside.forward

        def note(features: dict[str, Tensor]) -> dict[str, Tensor]:
            found: dict[str, Tensor] = original(features)
            found["token_embeddings"].retain_grad()
            rows.append(found["token_embeddings"])
            return found

        inside.forward = note
        nothing = torch.zeros_like(batch["is_chosen"])
        model({**batch, "is_chosen": nothing}).backward()
        (row,) = rows
        assert row.grad is not None
        assert bool(row.grad[:, 0].abs().sum(1).bool().all())
        assert not row.grad[:, 1:].any()

    def test_parts_that_are_computed_twice_give_the_same(self, folder: Path) -> None:
        """Also with dropout, whose masks must be those of the first time."""
        found = []
        for memory in (10_000, 0):
            model, batch, start = made(folder, Budget(mini_batch_tokens=30, tokens_in_memory=memory, pads=False))
            model.train()
            torch.manual_seed(5)
            with without_padding(start.model, start.encoder, cls_only=False):
                loss = model(batch)
                found.append((float(loss.detach()), gradients(model, loss)))
        (one, wanted), (other, again) = found
        assert one == pytest.approx(other, rel=1e-6)
        for name, gradient in wanted.items():
            torch.testing.assert_close(again[name], gradient, atol=1e-5, rtol=1e-4, msg=name)

    def test_parts_keep_fewer_activations(self, folder: Path) -> None:
        kept = []
        for memory in (10_000, 0):
            model, batch, _ = made(folder, Budget(mini_batch_tokens=30, tokens_in_memory=memory, pads=False))
            sizes: dict[int, int] = {}

            def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(batch)
            loss.backward()
            kept.append(sum(sizes.values()))
        assert kept[1] < 0.5 * kept[0]

    def test_bfloat16_is_near(self, folder: Path) -> None:
        model, batch, start = made(folder)
        model.eval()
        exact = float(model(batch).detach())
        with (
            torch.autocast("cpu", torch.bfloat16),
            without_padding(start.model, start.encoder, cls_only=False),
        ):
            loss = model(batch)
        assert loss.dtype == torch.float32
        assert float(loss.detach()) == pytest.approx(exact, rel=0.02)
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model, loss).values())


_PROCESS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from tests.test_retromae_loss import gradients, halves, made
folder, result = Path(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo")
rank = dist.get_rank()
model, batch, _ = made(folder)
model.double().eval()
wrapped = DistributedDataParallel(model, find_unused_parameters=True)
loss = wrapped(halves(batch)[rank])
found = gradients(model, loss)
total = loss.detach()
dist.all_reduce(total)
if rank == 0:
    torch.save((total / 2, model.losses, found), result)
dist.destroy_process_group()
"""


def halves(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """A batch for each of two processes, with different numbers of texts and of tokens."""
    found = []
    for number, (begin, end) in enumerate(((0, 4), (4, 5))):
        longest = int(batch["attention_mask"][begin:end].sum(1).max())
        rows = {name: one[begin:end, :longest] for name, one in batch.items() if name != "seed"}
        found.append({**rows, "seed": batch["seed"] + number})
    return found


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path: Path, together: Together) -> None:
    folder = make_checkpoint(tmp_path / "it", hidden_size=16, heads=2)
    result = tmp_path / "result.pt"
    ended = together(_PROCESS, folder, result)
    assert ended.codes == [0, 0], ended.said
    value, parts, found = torch.load(result)
    # One process computes the same two parts one after the other, with the same masks.
    batch = made(folder)[1]
    lengths = batch["attention_mask"].sum(1).tolist()
    model, batch, _ = made(folder, Budget(mini_batch_tokens=sum(lengths[:4]), tokens_in_memory=10_000, pads=False))
    model.double().eval()
    loss = model(batch)
    wanted = gradients(model, loss)
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, part in model.losses.items():
        assert float(parts[name]) == pytest.approx(float(part), rel=1e-12)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-9, msg=name)


class TestVocabularyLoss:
    def test_loss_and_gradients_are_those_of_torch_in_any_number_of_parts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        rows, weight, bias = (
            torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((23, 6), (11, 6), 11)
        )
        wanted = torch.randint(11, (23,))
        expected = torch.nn.functional.cross_entropy(rows @ weight.T + bias, wanted, reduction="sum")
        exact = torch.autograd.grad(3 * expected, (rows, weight, bias))
        for at_once in (1, 5, 23, 100):
            monkeypatch.setattr(of_vocabulary, "_LEAST_ROWS", at_once)
            monkeypatch.setattr(of_vocabulary, "_LOGITS_AT_ONCE", 0)
            loss = vocabulary_loss(rows, weight, bias, wanted)
            assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
            for one, other in zip(torch.autograd.grad(3 * loss, (rows, weight, bias)), exact, strict=True):
                torch.testing.assert_close(one, other, atol=1e-10, rtol=0)

    def test_no_rows_have_no_loss(self) -> None:
        weight = torch.randn(5, 3, requires_grad=True)
        loss = vocabulary_loss(torch.zeros(0, 3), weight, torch.zeros(5), torch.zeros(0, dtype=torch.int64))
        (slope,) = torch.autograd.grad(loss, weight)
        assert float(loss.detach()) == 0
        assert not slope.any()

    def test_not_all_logits_are_in_memory(self) -> None:
        """Of 4,096 rows and 8,192 words they would have 128 MiB, and their gradient again."""
        rows, weight = torch.randn(4096, 4, requires_grad=True), torch.randn(8192, 4, requires_grad=True)
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            vocabulary_loss(rows, weight, torch.zeros(8192), torch.zeros(4096, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
        assert sum(kept) < 1 << 20
