"""How much memory and computation a training takes: the formulas against what really happens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bge_integrations.backend.engines.architecture import EncoderShape, describe_encoder
from bge_integrations.training.memory import DEFAULT_BUDGET, activation_bytes, estimate_step, fitting_budget
from bge_integrations.training.starting import _without_attention_dropout
from bge_integrations.training.unpadded import without_padding
from tests.test_engines import VOCABULARY, Shape, random_model
from tests.test_unpadded import Inside, column

SMALL = Shape("own", hidden_size=64, heads=2, layers=4)


def described(model: torch.nn.Module) -> EncoderShape:
    shape = describe_encoder(model)
    assert shape is not None
    return shape


@contextmanager
def kept_bytes(model: torch.nn.Module) -> Iterator[list[int]]:
    """The bytes that autograd keeps inside the block, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}
    found: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
    found.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [SMALL, Shape("wide", hidden_size=128, heads=4, layers=2)])
def test_activations(shape: Shape, precision: str, cls_only: bool) -> None:
    inside = Inside(copy.deepcopy(random_model(shape))).train()
    _without_attention_dropout(inside)
    known = described(inside.auto_model)
    features = column([60] * 70, 0, "cpu")
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with kept_bytes(inside) as kept, autocast, without_padding([inside], known, cls_only=cls_only):
        rows = inside(features)["token_embeddings"]
    assert rows.requires_grad
    expected = activation_bytes(known, 60 * 70, precision=precision, device="cpu", cls_only=cls_only)
    assert 0.8 * expected < kept[0] < 1.1 * expected


@pytest.mark.parametrize("cached", [False, True])
def test_operations(cached: bool) -> None:
    inside = Inside(copy.deepcopy(random_model(SMALL)))
    known = described(inside.auto_model)
    queries, passages = column([10] * 6, 0, "cpu"), column([40] * 12, 0, "cpu")
    with FlopCounterMode(display=False) as counter, without_padding([inside], known, cls_only=True):
        if cached:
            with torch.no_grad():
                for one in (queries, passages):
                    inside(one)
        asked, found = (inside(one)["token_embeddings"][:, 0] for one in (queries, passages))
        (asked @ found.T).sum().backward()
    expected = estimate_step(
        known,
        words=VOCABULARY,
        queries=6,
        passages=12,
        query_tokens=10,
        passage_tokens=40,
        mini_batch_tokens=100 if cached else None,
    ).flops
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_weights_and_vectors() -> None:
    model = random_model(SMALL)
    own = sum(one.numel() for name, one in model.named_parameters() if not name.startswith("pooler"))
    step = estimate_step(
        described(model),
        words=VOCABULARY,
        queries=8,
        passages=16,
        query_tokens=10,
        passage_tokens=40,
        devices=2,
        mini_batch_tokens=100,
    )
    assert step.weights == 16 * own
    assert step.vectors == 2 * 4 * (4 + 8 + 16) * 64
    assert step.memory == step.weights + step.activations + step.vectors + step.scores
    assert step.activations == activation_bytes(
        described(model), 100, precision="bfloat16", device="cuda", cls_only=True
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_budget_fits_the_memory(device: str) -> None:
    known = described(random_model(SMALL))
    sizes = []
    for memory in (10**9, 8 * 10**9, 64 * 10**9):
        budget = fitting_budget(known, precision="float32", device=device, memory=memory)
        needed = activation_bytes(known, budget.tokens_in_memory, precision="float32", device=device)
        assert 0.2 * memory < needed < 0.6 * memory
        assert budget.mini_batch_tokens <= budget.tokens_in_memory
        assert not budget.pads
        sizes.append(budget.tokens_in_memory)
    assert sizes == sorted(sizes)
    assert fitting_budget(known, precision="float32", device=device, memory=1000).tokens_in_memory >= 512
    assert fitting_budget(None, precision="float32", device=device, memory=10**9) == DEFAULT_BUDGET
