"""Every engine gives what plain transformers gives, for every shape of the BERT and XLM-RoBERTa family."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.architecture import describe_encoder
from bge_integrations.backend.engines.choice import ENGINE_KINDS
from bge_integrations.backend.engines.interface import Engine, Rows, TokenBatch
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine, computes_bfloat16, graph_inputs
from bge_integrations.backend.engines.openvino.graph import build_graph
from bge_integrations.backend.engines.openvino.words import WordTable
from bge_integrations.backend.engines.torch.engine import TorchEngine
from bge_integrations.backend.engines.torch.layout import OneBlock
from bge_integrations.errors import EngineNotAvailableError, MissingExtraError
from bge_integrations.settings import EngineName, Precision
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint

VOCABULARY = 500
POSITIONS = 512


@dataclass(frozen=True)
class Shape:
    """An architecture with the width and the heads of a real model, but few layers."""

    name: str
    architecture: str = "bert"
    hidden_size: int = 384
    heads: int = 12
    layers: int = 3

    def __str__(self) -> str:
        return self.name


SHAPES = [
    Shape("small-en"),
    Shape("small-zh", hidden_size=512, heads=8),
    Shape("base", hidden_size=768, heads=12, layers=2),
    Shape("large", hidden_size=1024, heads=16, layers=2),
    Shape("one layer", hidden_size=64, heads=2, layers=1),
    Shape("bge-m3", "xlm-roberta", hidden_size=1024, heads=16, layers=2),
    Shape("reranker-base", "xlm-roberta", hidden_size=768, heads=12, layers=2),
    Shape("roberta", "roberta", hidden_size=64, heads=4),
    Shape("camembert", "camembert", hidden_size=64, heads=4),
]
EACH_SHAPE = [
    pytest.param(shape, id=str(shape), marks=pytest.mark.slow if shape.hidden_size == 1024 else ()) for shape in SHAPES
]
CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
    "camembert": (CamembertConfig, CamembertModel),
}

ENGINES = ("openvino", "torch")
LENGTHS = {
    "one short": [2],
    "one of the maximum": [POSITIONS],
    "equal": [17, 17, 17, 17],
    "mixed": [POSITIONS, 130, 130, 64, 9, 3, 2],
    "unsorted": [5, 40, 5, 40, 12],
    "equal, computed wider": [131, 131],
    "mixed, computed wider": [135, 67, 65],
}


@cache
def random_model(shape: Shape) -> torch.nn.Module:
    """A model whose attention is far from uniform and whose biases and norms are not what they start as."""
    config_class, model_class = CLASSES[shape.architecture]
    offset = 0 if shape.architecture == "bert" else 2
    torch.manual_seed(7)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden_size,
        max_position_embeddings=POSITIONS + offset,
        type_vocab_size=2 if shape.architecture == "bert" else 1,
        pad_token_id=1 if offset else 0,
        initializer_range=0.06,
    )
    model: torch.nn.Module = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "LayerNorm.weight")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch_of(lengths: list[int], *, seed: int = 0) -> TokenBatch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCABULARY, sum(lengths)).astype(np.int32)
    return TokenBatch(ids, np.array(lengths, dtype=np.int64))


def reference(model: torch.nn.Module, batch: TokenBatch, pad_id: int, rows: Rows) -> NDArray[np.float32]:
    """What transformers gives for each text by itself, so without any padding."""
    found = []
    for ids in np.split(batch.ids, np.cumsum(batch.lengths)[:-1]):
        with torch.inference_mode():
            inputs = torch.from_numpy(ids.astype(np.int64))[None]
            hidden = model(inputs, attention_mask=torch.ones_like(inputs))[0][0]
        found.append(hidden[:1] if rows == "cls" else hidden)
    vectors: NDArray[np.float32] = torch.cat(found).numpy()
    return vectors


def start(name: str, model: torch.nn.Module, rows: Rows, precision: str = "float32") -> Engine:
    shape = describe_encoder(model)
    assert shape is not None
    if name == "torch":
        # A copy, since the engine moves weights, and in its own precision.
        copied = type(model)(model.config).eval()
        copied.load_state_dict(model.state_dict())
        return TorchEngine(copied.to(getattr(torch, precision)), shape, rows=rows)
    weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    graph = build_graph(weights, shape, cls_only=rows == "cls")
    return OpenVinoEngine(graph, shape, rows=rows, precision=precision, threads=2)


WORD_IDS = WordTable(np.arange(VOCABULARY, dtype=np.float32)[:, None])
"""The row of a word is its id."""


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: NDArray[np.float32] = (left * right).sum(1) / norms
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", EACH_SHAPE)
def test_float32_equals_transformers(engine: str, shape: Shape) -> None:
    model = random_model(shape)
    for rows in ("cls", "tokens"):
        running = start(engine, model, rows)
        for name, lengths in LENGTHS.items():
            batch = batch_of(lengths)
            got = running.submit(batch).result()
            expected = reference(model, batch, 0, rows)
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            # Hidden states are about 1 in size; vectors of unit length are nearer still.
            np.testing.assert_allclose(got, expected, atol=2e-5, err_msg=f"{rows} {name}")
            unit = got / np.linalg.norm(got, axis=1, keepdims=True)
            expected_unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(unit, expected_unit, atol=1e-5, err_msg=f"{rows} {name}")


@pytest.mark.parametrize(
    ("engine", "precision"), [("openvino", "bfloat16"), ("torch", "bfloat16"), ("torch", "float16")]
)
@pytest.mark.parametrize("shape", EACH_SHAPE)
def test_half_precisions_stay_near(engine: str, precision: str, shape: Shape) -> None:
    if engine == "openvino" and not computes_bfloat16():
        pytest.skip("this processor has no bfloat16 instructions")
    model = random_model(shape)
    running = start(engine, model, "cls", precision)
    for lengths in LENGTHS.values():
        batch = batch_of(lengths)
        assert cosines(running.submit(batch).result(), reference(model, batch, 0, "cls")).min() >= 0.9995


def test_openvino_computes_few_widths_and_none_beyond_the_positions() -> None:
    shape = describe_encoder(random_model(SHAPES[0]))
    assert shape is not None
    widths = {}
    for longest in range(1, POSITIONS + 1):
        inputs = graph_inputs(TokenBatch(np.full(longest + 1, 9, np.int32), np.array([longest, 1])), shape, WORD_IDS)
        widths[longest] = inputs["words"].shape[1]
        assert inputs["mask"].shape == (2, 1, 1, widths[longest])
        assert (inputs["mask"] == 0).sum() == longest + 1
        assert (inputs["words"][..., 0] != shape.pad_id).sum() == longest + 1
    assert all(longest <= width <= longest * 33 / 32 for longest, width in widths.items())
    assert [widths[longest] for longest in range(1, 65)] == list(range(1, 65))
    assert len(set(widths.values())) == 64 + 3 * 32
    few = dataclasses.replace(shape, positions=131)
    inputs = graph_inputs(TokenBatch(np.full(130, 9, np.int32), np.array([130])), few, WORD_IDS)
    assert inputs["words"].shape == (1, 131, 1)


def test_openvino_computes_queries_in_few_numbers_and_widths() -> None:
    shape = describe_encoder(random_model(SHAPES[0]))
    assert shape is not None
    computed = {"interactive": set[Any](), "bulk": set[Any]()}
    for priority, shapes in computed.items():
        for texts in range(1, 65):
            for longest in range(1, 512 // texts + 1):
                lengths = np.full(texts, longest, dtype=np.int64)
                batch = TokenBatch(np.full(texts * longest, 9, np.int32), lengths, priority=priority)  # type: ignore[arg-type]
                found = graph_inputs(batch, shape, WORD_IDS, batch_tokens=512)["words"].shape[:2]
                assert texts <= found[0] <= texts * 9 / 8
                assert longest <= found[1] <= longest * 9 / 8
                assert texts > 1 or found[0] == 1
                assert found[0] == texts or found[0] * found[1] <= 512
                shapes.add(found)
    assert sorted(width for texts, width in computed["interactive"] if texts == 1 and width <= 64) == [
        *range(1, 17),
        *range(18, 33, 2),
        *range(36, 65, 4),
    ]
    # Of the 2,402 shapes that a batch can have.
    assert {priority: len(shapes) for priority, shapes in computed.items()} == {"interactive": 982, "bulk": 1377}


@pytest.mark.parametrize("rows", ["cls", "tokens"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[7]], ids=str)
def test_several_queries_give_what_each_of_them_gives(rows: Rows, shape: Shape) -> None:
    model = random_model(shape)
    running = start("openvino", model, rows)
    lengths = [2 + number * 7 % 40 for number in range(21)]
    batch = dataclasses.replace(batch_of(lengths), priority="interactive")
    assert graph_inputs(batch, running._shape, WORD_IDS, 1024)["words"].shape == (22, 44, 1)  # type: ignore[attr-defined]
    got = running.submit(batch).result()
    np.testing.assert_allclose(got, reference(model, batch, 0, rows), atol=2e-5)


def test_openvino_keeps_the_second_texts_of_pairs_apart_where_it_computes_wider() -> None:
    shape = describe_encoder(random_model(SHAPES[0]))
    assert shape is not None
    pair = TokenBatch(np.full(67, 9, np.int32), np.array([67]), first_lengths=np.array([20]))
    rows = graph_inputs(pair, dataclasses.replace(shape, token_types=2), WORD_IDS)["positions"]
    second = np.arange(20, 67) + shape.positions
    assert rows[0].tolist() == [*range(20), *second, 67]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_padding_token_inside_a_text_has_no_position_of_its_own(engine: str) -> None:
    model = random_model(SHAPES[7])
    ids = np.array([5, 9, 1, 1, 30, 2, 8, 1, 2], dtype=np.int32)
    batch = TokenBatch(ids, np.array([6, 3]))
    got = start(engine, model, "tokens").submit(batch).result()
    np.testing.assert_allclose(got, reference(model, batch, 1, "tokens"), atol=2e-5)


@pytest.mark.parametrize("rows", ["cls", "tokens"])
def test_one_padded_block_gives_what_runs_of_equal_lengths_give(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout for GPUs without a kernel for different lengths, here on the CPU."""
    from bge_integrations.backend.engines.torch import encoder

    model = random_model(SHAPES[0])
    running = start("torch", model, rows)
    monkeypatch.setattr(encoder, "_layout", lambda batch, device: OneBlock(batch, device))
    for lengths in LENGTHS.values():
        batch = batch_of(lengths)
        got = running.submit(batch).result()
        np.testing.assert_allclose(got, reference(model, batch, 0, rows), atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_threads_get_what_one_gets(engine: str) -> None:
    model = random_model(SHAPES[0])
    running = start(engine, model, "cls")
    batches = [batch_of([20, 7, 3], seed=seed) for seed in range(32)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: running.submit(batch).result(), batches))
    for batch, rows in zip(batches, found, strict=True):
        np.testing.assert_allclose(rows, reference(model, batch, 0, "cls"), atol=2e-5)


def test_batches_side_by_side_in_a_new_engine_do_not_disturb_each_other() -> None:
    model = random_model(Shape("small-en", layers=2))
    batches = [batch_of(lengths) for lengths in ([512, 512], [512, 511], [302, 42, 4, 3], [100] * 9)]
    expected = [reference(model, batch, 0, "cls") for batch in batches]
    for _ in range(6):
        running = start("openvino", model, "cls")
        pending = [running.submit(batch) for batch in batches]
        for one, rows in zip(pending, expected, strict=True):
            np.testing.assert_allclose(one.result(), rows, atol=2e-5)


def test_the_torch_engine_holds_no_second_copy_of_the_weights() -> None:
    model = random_model(Shape("own", hidden_size=64, heads=2))
    running = TorchEngine(model, describe_encoder(model), rows="cls")  # type: ignore[arg-type]
    own = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    fused, _ = running._encoder._qkv[0]
    assert own["encoder.layer.0.attention.self.query.weight"] == fused.data_ptr()
    assert own["encoder.layer.0.attention.self.value.weight"] == fused[128:].data_ptr()
    assert running._encoder._weights["embeddings.word_embeddings.weight"].data_ptr() in own.values()


class TestChoice:
    @pytest.fixture
    def chosen(self, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
        with caplog.at_level(logging.INFO, logger="bge_integrations"):
            yield caplog

    def test_the_table_holds_every_engine_that_the_setting_knows(self) -> None:
        assert {"auto", *(kind.name for kind in ENGINE_KINDS)} == set(get_args(EngineName))
        precisions = {precision for kind in ENGINE_KINDS for precision in kind.precisions}
        assert {"auto", *precisions} == set(get_args(Precision))

    def test_auto_takes_openvino_on_the_cpu_and_says_why(
        self, make: MakeCheckpoint, chosen: pytest.LogCaptureFixture
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu")
        assert encoder.backend.engine.name == "openvino"
        assert "engine openvino, the fastest that can run it here" in chosen.text

    def test_auto_goes_on_with_torch_without_openvino(
        self, make: MakeCheckpoint, chosen: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", _without("openvino"))
        folder = make("bge-small-en")
        encoder = BgeEncoder(folder, device="cpu")
        assert encoder.backend.engine.name == "torch"
        assert "not openvino: openvino is not installed" in chosen.text
        np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)
        with pytest.raises(MissingExtraError, match="pip install bge-integrations"):
            BgeEncoder(folder, device="cpu", engine="openvino")

    def test_auto_takes_torch_for_float16_on_the_cpu(self, make: MakeCheckpoint) -> None:
        assert BgeEncoder(make("bge-small-en"), device="cpu", precision="float16").backend.engine.name == "torch"

    @pytest.mark.parametrize("engine", ["openvino", "torch"])
    def test_an_architecture_that_it_does_not_know_is_refused_by_name_and_run_under_auto(
        self, make: MakeCheckpoint, engine: EngineName
    ) -> None:
        folder = make("other", modules=("cls", "mean"))
        with pytest.raises(EngineNotAvailableError, match="is not a plain BERT or XLM-RoBERTa encoder"):
            BgeEncoder(folder, device="cpu", engine=engine)
        assert BgeEncoder(folder, device="cpu").backend.engine.name == "sentence-transformers"

    @pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"is_decoder": True}])
    def test_a_variant_of_a_known_architecture_is_left_to_sentence_transformers(
        self, make: MakeCheckpoint, change: dict[str, Any]
    ) -> None:
        import json

        folder = make("other", modules=("cls",))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        encoder = BgeEncoder(folder, device="cpu")
        assert encoder.backend.engine.name == "sentence-transformers"
        np.testing.assert_allclose(
            encoder.encode(["lazy fox"]), reference_vectors(folder, ["lazy fox"], normalize=False), atol=1e-5
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"engine": "openvino", "precision": "float16"}, "computes in float32, bfloat16, int8, not in float16"),
            ({"engine": "torch", "precision": "int8"}, "computes in float32, bfloat16, float16, not in int8"),
            ({"engine": "sentence-transformers", "precision": "int8"}, "not in int8"),
        ],
    )
    def test_what_an_engine_cant_do_is_refused_with_the_reason(
        self, bge_small_en: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(EngineNotAvailableError, match=message):
            BgeEncoder(bge_small_en, device="cpu", **settings)

    def test_openvino_is_no_choice_on_another_device(self) -> None:
        from bge_integrations.backend.engines.choice import candidates

        with pytest.raises(EngineNotAvailableError, match="it runs on cpu, not on cuda:0"):
            list(candidates("openvino", "cuda:0", "float32", known_architecture=True))
        assert [kind.name for kind in candidates("auto", "cuda:0", "float16", known_architecture=True)] == [
            "torch",
            "sentence-transformers",
        ]
        assert [kind.name for kind in candidates("auto", "mps", "float32", known_architecture=True)] == [
            "sentence-transformers"
        ]
        with pytest.raises(EngineNotAvailableError, match="No engine computes in int8 on cuda:0"):
            list(candidates("auto", "cuda:0", "int8", known_architecture=True))


@pytest.mark.parametrize("engine", ["openvino", "torch", "sentence-transformers"])
@pytest.mark.parametrize("modules", [("mean", "normalize"), ("max",), ("cls",), ("mean",)])
def test_poolings_of_other_models_are_theirs(
    make: MakeCheckpoint, engine: EngineName, modules: tuple[str, ...]
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = make("other", modules=modules)
    texts = ["", "lazy fox", "the quick brown fox", "dog " * 70]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    encoder = BgeEncoder(folder, device="cpu", engine=engine, on_truncation="ignore")
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_an_instruction_is_left_out_of_the_mean_where_the_checkpoint_says_so(
    make: MakeCheckpoint, engine: EngineName
) -> None:
    import json

    from sentence_transformers import SentenceTransformer

    folder = make("other", modules=("mean",), prompts={"query": "the fox says: ", "document": ""})
    config = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**config, "include_prompt": False}))
    texts = ["lazy fox", "dog", "vector store answers questions"]
    expected = SentenceTransformer(str(folder), device="cpu").encode_query(texts)
    encoder = BgeEncoder(folder, device="cpu", engine=engine)
    np.testing.assert_allclose(encoder.encode_queries(texts), expected, atol=1e-5)


def test_the_real_minilm_weights_give_the_same_vectors_from_every_engine(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["How do plants make sugar?", "样例", "", *("word " * length for length in (3, 50, 400))]
    expected = SentenceTransformer(minilm, device="cpu").encode(texts)
    for engine in ("openvino", "torch", "sentence-transformers"):
        encoder = BgeEncoder(minilm, device="cpu", engine=engine, on_truncation="ignore")
        np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5, err_msg=engine)


def test_an_explicit_choice_of_threads_reaches_every_engine(make: MakeCheckpoint) -> None:
    folder = make("bge-small-en")
    before = torch.get_num_threads()
    try:
        for engine in ("torch", "sentence-transformers"):
            BgeEncoder(folder, device="cpu", engine=engine, threads=1)
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    one = BgeEncoder(folder, device="cpu", engine="openvino", threads=1)
    assert one.backend is not BgeEncoder(folder, device="cpu", engine="openvino", threads=2).backend
    np.testing.assert_allclose(one.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)


@pytest.mark.gpu
class TestCuda:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
    def test_agrees_with_transformers_on_the_cpu(self, shape: Shape, precision: str) -> None:
        model = random_model(shape)
        description = describe_encoder(model)
        assert description is not None
        for rows in ("cls", "tokens"):
            copied = type(model)(model.config).eval()
            copied.load_state_dict(model.state_dict())
            running = TorchEngine(copied.to("cuda", getattr(torch, precision)), description, rows=rows)
            for lengths in LENGTHS.values():
                batch = batch_of(lengths)
                got, expected = running.submit(batch).result(), reference(model, batch, 0, rows)
                if precision == "float32":
                    np.testing.assert_allclose(got, expected, atol=1e-3)
                assert cosines(got, expected).min() >= 0.9995

    def test_auto_takes_torch_in_float16_and_results_survive_many_batches_in_flight(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, device="cuda", batch_tokens=64)
        assert encoder.backend.engine.name == "torch"
        assert encoder.backend.request.precision == "float16"
        texts = [f"fox {'dog ' * (index % 17)}" for index in range(500)]
        expected = BgeEncoder(bge_small_en, device="cpu").encode(texts)
        assert cosines(encoder.encode(texts), expected).min() >= 0.9995


def _without(package: str) -> Any:  # noqa: ANN401
    import importlib.util

    find = importlib.util.find_spec
    return lambda name, *rest: None if name == package else find(name, *rest)
