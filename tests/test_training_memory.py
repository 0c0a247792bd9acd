"""How much memory and computation a training takes: the formulas against what really happens."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bge_integrations.backend.engines.architecture import EncoderShape, describe_encoder
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.embedders.unpadded import without_padding
from bge_integrations.training.machine.memory import (
    DEFAULT_BUDGET,
    Estimate,
    activation_bytes,
    decoder_shape,
    estimate_step,
    fitting_budget,
)
from bge_integrations.training.trainer.starting import leave_out_attention_dropout, open_start
from tests.test_engines import VOCABULARY, Shape, random_model
from tests.test_unpadded import Inside, column

ROOT = Path(__file__).resolve().parents[1]
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
    leave_out_attention_dropout(inside)
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
    inside = Inside(copy.deepcopy(random_model(SMALL))).train()
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


@pytest.mark.parametrize(
    ("column", "layers", "width", "measured"),
    [(0, 12, 384, (11.6, 12.1)), (1, 12, 768, (23.0, 24.8)), (2, 24, 1024, (69.5, 54.5))],
)
def test_the_table_of_the_guide(column: int, layers: int, width: int, measured: tuple[float, float]) -> None:
    shape = EncoderShape(
        layers=layers,
        hidden_size=width,
        feed_forward_size=4 * width,
        heads=12,
        norm_eps=1e-12,
        positions_after_padding=False,
        pad_id=0,
        positions=512,
    )

    def step(devices: int, tokens: int | None) -> Estimate:
        return estimate_step(
            shape,
            words=30522,
            queries=32768,
            passages=65536,
            query_tokens=64,
            passage_tokens=128,
            devices=devices,
            mini_batch_tokens=tokens,
        )

    seconds, memory = measured
    peak_of_h200, peak_of_a100 = 989e12, 312e12
    steps = 230e6 / 32768
    on_a100 = step(48, 16384).flops / (peak_of_a100 * step(1, 65536).flops / seconds / peak_of_h200)
    expected = {
        "all activations, one GPU": f"{step(1, None).memory / 1e9:,.0f}",
        "all activations, each of 48 GPUs": f"{step(48, None).memory / 1e9:.1f}",
        "in parts of 65,536 tokens, one GPU": f"{step(1, 65536).memory / 1e9:.1f}",
        "in parts of 16,384 tokens, one GPU": f"{step(1, 16384).memory / 1e9:.1f}",
        "in parts of 16,384 tokens, each of 48 GPUs": f"{step(48, 16384).memory / 1e9:.1f}",
        "PFLOP, one GPU": f"{step(1, 65536).flops / 1e15:.2f}",
        "measured on one H200: seconds (memory)": f"{seconds} ({memory} GB)",
        "230 million pairs at this speed: hours": f"{steps * seconds / 3600:.0f}",
        "48 A100, each as far from its peak: seconds, hours": f"{on_a100:.1f}, {steps * on_a100 / 3600:.1f}",
    }
    guide = (ROOT / "docs" / "guides" / "training.md").read_text(encoding="utf-8")
    found = {
        cells[0]: cells[1 + column]
        for line in guide.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    }
    assert {name: found.get(name) for name in expected} == expected
    if width < 1024:  # larger parts than were measured
        assert memory * 1e9 < step(1, 65536).memory < 1.1 * memory * 1e9


_WORDS = "fox dog plants sugar light"
_LARGE_BATCH = """
import resource, sys
from pathlib import Path
from bge_integrations.training import EmbedderTraining, TrainingData, TrainingRow, train_embedder
start, output, rows, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
words = ["fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France", "cat", "tree", "house"]

def text(number):
    return " ".join(words[number // len(words) ** place % len(words)] for place in range(5))

data = TrainingData([TrainingRow(f"about {text(n)}", (f"{text(n)} is",)) for n in range(rows)])

def train(size, steps):
    settings = EmbedderTraining(
        batch_size=size, max_steps=steps, precision="float32", tokens_in_memory=tokens, mini_batch_tokens=8192
    )
    part = TrainingData(data.rows[:max(size, 2)])
    return train_embedder(part, start, Path(output) / str(size), settings=settings)

train(256, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = train(rows, 1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print("grown", (after - before) * unit, "loss", result.losses[1])
"""


@pytest.mark.slow
def test_a_batch_of_16384_rows_needs_the_memory_of_a_part(bge_small_en: Path, tmp_path: Path) -> None:
    """All its activations would need twice of what is allowed here."""
    script = tmp_path / "large.py"
    script.write_text(_LARGE_BATCH, encoding="utf-8")
    rows, tokens = 16384, 16384
    said = subprocess.run(
        [sys.executable, script, bge_small_en, tmp_path, str(rows), str(tokens)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert said.returncode == 0, said.stderr
    _, grown, _, loss = said.stdout.split()
    assert float(loss) > 5  # more than half of ln(16384), which scores without meaning give
    start = open_start(EncoderSettings(model_name=str(bge_small_en), device="cpu"))
    assert start.encoder is not None
    texts = [f"{start.instruction}about {_WORDS}", f"{_WORDS} is"]
    tokens_of_a_row = sum(map(len, start.tokenize(texts, 512)))
    whole = activation_bytes(start.encoder, rows * tokens_of_a_row, precision="float32", device="cpu", cls_only=True)
    assert int(grown) < 0.9e9 < whole / 2, grown


def test_a_large_decoder_s_batch_is_computed_in_parts() -> None:
    """Of a batch of 8,192 tokens, all activations of a model like bge-en-icl would be larger than the device."""
    from transformers import MistralConfig

    shape = decoder_shape(MistralConfig())
    assert shape is not None
    memory = 40 * 10**9
    budget = fitting_budget(shape, precision="bfloat16", device="cuda", memory=memory)
    assert activation_bytes(shape, 8192, precision="bfloat16", device="cuda") > memory
    taken = activation_bytes(shape, budget.tokens_in_memory, precision="bfloat16", device="cuda")
    assert 0.4 * memory < taken <= 0.5 * memory
    assert decoder_shape(object()) is None
