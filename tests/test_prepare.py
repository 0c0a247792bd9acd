"""Prepared folders, the cache of graphs, and int8."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.docstrings.corpus import collect
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.architecture import describe_encoder
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine, computes_bfloat16, graph_inputs
from bge_integrations.backend.engines.openvino.graph import build_graph
from bge_integrations.backend.engines.openvino.quantization import quantize_statically
from bge_integrations.backend.prepared.build import default_calibration_texts
from bge_integrations.backend.prepared.folder import Agreement, PreparedFolder
from bge_integrations.backend.prepared.measuring import Measured, Way, fastest
from bge_integrations.errors import (
    EngineNotAvailableError,
    MissingExtraError,
    PreparedModelError,
    SettingsError,
    UnsupportedModelError,
)
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.prepare import prepare, read_calibration
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint
from tests.test_engines import LENGTHS, SHAPES, Shape, batch_of, cosines, random_model, reference

TEXTS = ["", "lazy fox", "the quick brown fox jumps", "dog " * 70, "样例 北京"]


@pytest.fixture(scope="module")
def prepared(bge_small_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny English model, prepared under a name that says nothing of what it is."""
    folder = tmp_path_factory.mktemp("prepared") / "mine"
    prepare(bge_small_en, folder)
    return folder


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(prepared, tmp_path / "copied")


OFFLINE = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["sentence_transformers"] = None
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
import json
embeddings = HuggingFaceBgeEmbeddings(model_name=sys.argv[1], on_truncation="ignore")
print(json.dumps([embeddings.embed_query("lazy fox"), *embeddings.embed_documents(json.loads(sys.argv[2]))]))
"""


class TestFolder:
    def test_gives_the_same_vectors_with_the_same_instruction(self, prepared: Path, bge_small_en: Path) -> None:
        one, other = (BgeEncoder(name, device="cpu", on_truncation="ignore") for name in (prepared, bge_small_en))
        np.testing.assert_allclose(one.encode_documents(TEXTS), reference_vectors(bge_small_en, TEXTS), atol=1e-5)
        np.testing.assert_allclose(one.encode_queries(TEXTS), other.encode_queries(TEXTS), atol=1e-6)
        assert one.instruction("query") == other.instruction("query")
        assert (one.max_length, one.dimension, one.normalizes) == (other.max_length, other.dimension, other.normalizes)

    def test_loads_elsewhere_without_torch(self, prepared: Path, bge_small_en: Path, tmp_path: Path) -> None:
        moved = shutil.copytree(prepared, tmp_path / "elsewhere")
        run = subprocess.run(
            [sys.executable, "-c", OFFLINE, str(moved), json.dumps(TEXTS)], capture_output=True, text=True, check=True
        )
        query, *documents = json.loads(run.stdout)
        np.testing.assert_allclose(documents, reference_vectors(bge_small_en, TEXTS), atol=1e-5)
        asked = "Represent this sentence for searching relevant passages: lazy fox"
        np.testing.assert_allclose([query], reference_vectors(bge_small_en, [asked]), atol=1e-5)

    def test_both_adapters_take_it_as_model_name(self, prepared: Path, bge_small_en: Path) -> None:
        expected = reference_vectors(bge_small_en, ["lazy fox"])
        langchain, llama_index = HuggingFaceBgeEmbeddings(model_name=prepared), HuggingFaceBgeEmbedding(str(prepared))
        np.testing.assert_allclose(langchain.embed_documents(["lazy fox"]), expected, atol=1e-5)
        np.testing.assert_allclose([llama_index.get_text_embedding("lazy fox")], expected, atol=1e-5)
        assert langchain.encoder.backend is llama_index.encoder.backend

    def test_says_what_it_is_made_from(self, prepared: Path) -> None:
        content = json.loads((prepared / "bge.json").read_text())
        manifest = content["manifest"]
        assert manifest["source"] == "bge-small-en-v1.5"
        assert manifest["model_id"] == "BAAI/bge-small-en-v1.5"
        assert manifest["query_instruction"].startswith("Represent this sentence")
        assert manifest["facts"]["pooling"] == "cls"
        assert manifest["precision"] == "float32"
        assert set(content["versions"]) == {"bge-integrations", "openvino", "tokenizers"}
        assert {"bge.json", *content["files"]} == {file.name for file in prepared.iterdir()}

    def test_a_float32_one_also_runs_in_bfloat16(self, prepared: Path) -> None:
        exact, rounded = (BgeEncoder(prepared, precision=p).encode(["lazy fox"]) for p in ("auto", "bfloat16"))
        assert 0.9995 < cosines(exact, rounded)[0] < 1 - 1e-7

    def test_a_mean_pooled_model_can_be_prepared_too(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        folder = make("other", modules=("mean", "normalize"), prompts={"query": "find: ", "document": ""})
        prepare(folder, tmp_path / "made")
        one, other = BgeEncoder(tmp_path / "made"), BgeEncoder(folder, engine="sentence-transformers", device="cpu")
        np.testing.assert_allclose(
            one.encode_queries(["fox", "lazy"]), other.encode_queries(["fox", "lazy"]), atol=1e-5
        )

    @pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
    @pytest.mark.parametrize("precision", ["float32", "int8"])
    def test_the_weights_memory_is_given_back_once_the_engine_has_its_own(
        self,
        make: MakeCheckpoint,
        tmp_path: Path,
        precision: Any,  # noqa: ANN401
    ) -> None:
        prepare(make("bge-small-en", hidden_size=128), tmp_path / "made", precision=precision)
        opened = PreparedFolder.open(tmp_path / "made")
        shape, rows = opened.manifest.facts.encoder, opened.manifest.rows
        assert shape is not None
        batch = TokenBatch(np.arange(5, 13, dtype=np.int32), np.array([5, 3]))
        vectors = []
        for _ in range(2):  # the second time, from weights that were given back
            engine = OpenVinoEngine(opened.graph, shape, rows=rows, precision=precision, threads=1)
            vectors.append(engine.submit(batch).result())
            assert _kilobytes_in_memory(tmp_path / "made" / "model.bin") == 0
            np.testing.assert_array_equal(engine.submit(batch).result(), vectors[0])

    def test_has_no_sentence_transformer_inside(self, prepared: Path) -> None:
        with pytest.raises(UnsupportedModelError, match=r"is a prepared model.*bge\.json names it"):
            _ = BgeEncoder(prepared).client

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"engine": "torch"}, EngineNotAvailableError, "prepared models are for openvino"),
            ({"precision": "int8"}, SettingsError, "was prepared in float32"),
            ({"precision": "float16"}, EngineNotAvailableError, "not in float16"),
            ({"max_length": 65}, SettingsError, "more than the 64 positions"),
        ],
    )
    def test_a_setting_that_it_cant_honour_is_refused(
        self, prepared: Path, settings: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            BgeEncoder(prepared, **settings)


def _kilobytes_in_memory(file: Path) -> int:
    """Returns the memory of this process that has the content of a file."""
    found: list[int] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_of_file = line.endswith(str(file))
        elif line.startswith("Rss:") and is_of_file:
            found.append(int(line.split()[1]))
    assert found, "it is not mapped"
    return sum(found)


class TestDamage:
    @pytest.mark.parametrize("name", ["model.bin", "model.xml", "words.npy", "tokenizer.json"])
    def test_a_missing_file_is_named(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        with pytest.raises(PreparedModelError, match=rf"{name} is missing. Copy or prepare it again"):
            BgeEncoder(copied)

    @pytest.mark.parametrize("name", ["model.bin", "model.xml", "words.npy", "tokenizer.json"])
    def test_a_changed_byte_is_found(self, copied: Path, name: str) -> None:
        content = bytearray((copied / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
        with pytest.raises(PreparedModelError, match=rf"{name} has changed since it was written"):
            BgeEncoder(copied)

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 6}', '{"format": 6, "files": {}}'])
    def test_a_damaged_manifest_is_refused(self, copied: Path, content: str) -> None:
        (copied / "bge.json").write_text(content)
        with pytest.raises(PreparedModelError, match="is damaged"):
            BgeEncoder(copied)

    def test_another_version_is_named(self, copied: Path) -> None:
        content = json.loads((copied / "bge.json").read_text())
        content |= {"format": 99, "versions": {"bge-integrations": "9.0"}}
        (copied / "bge.json").write_text(json.dumps(content))
        with pytest.raises(PreparedModelError, match=r"prepared by bge-integrations 9\.0 in format 99.*reads format 6"):
            BgeEncoder(copied)


class TestPreparing:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"precision": "float16"}, "precision='float16' can't be prepared; choose one of 'float32'"),
            ({"precision": "int8", "quantization": "int4"}, "quantization='int4' can't be prepared; choose one of"),
            ({"quantization": "static"}, "quantization='static' needs precision='int8'"),
            ({"precision": "int8", "calibration": ["a"]}, "calibration has 1 texts; give at least 10"),
        ],
    )
    def test_arguments_are_checked_before_any_work(
        self, bge_small_en: Path, tmp_path: Path, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            prepare(bge_small_en, tmp_path / "made", **arguments)
        assert not (tmp_path / "made").exists()

    def test_nothing_is_overwritten(self, bge_small_en: Path, copied: Path) -> None:
        with pytest.raises(SettingsError, match="exists already; name a new folder"):
            prepare(bge_small_en, copied)
        with pytest.raises(UnsupportedModelError, match="is prepared already"):
            prepare(copied, copied.parent / "again")

    def test_a_model_of_another_kind_is_refused(self, make: MakeCheckpoint, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModelError, match="can't be prepared: it is no plain BERT"):
            prepare(make("other", modules=("cls", "mean")), tmp_path / "made")

    def test_the_quantiser_is_asked_for_by_the_command_that_installs_it(
        self, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        for quantization in ("static", "mixed", "fastest"):
            with pytest.raises((MissingExtraError, ModuleNotFoundError), match="nncf"):
                prepare(bge_small_en, tmp_path / "made", precision="int8", quantization=quantization)
        prepare(bge_small_en, tmp_path / "made", precision="int8")  # needs none

    def test_calibration_texts_are_read_by_line(self, tmp_path: Path) -> None:
        (tmp_path / "texts.txt").write_text("one\n\n 二 \n", encoding="utf-8")
        assert read_calibration(tmp_path / "texts.txt") == ["one", " 二 "]
        with pytest.raises(SettingsError, match="can't be read"):
            read_calibration(tmp_path / "missing.txt")

    def test_the_default_texts_are_many_and_multilingual(self) -> None:
        texts = default_calibration_texts()
        assert len(texts) == len(set(texts)) >= 200
        assert all(text.strip() for text in texts)
        for script in ("[a-z]", "[一-鿿]", "[а-я]", "[ا-ي]", "[ぁ-ん]", "[가-힣]", "[ก-ฮ]"):
            assert sum(bool(re.search(script, text)) for text in texts) >= 3


INT8_WITHOUT = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "nncf"):
    sys.modules[name] = None
from bge_integrations import BgeEncoder
encoder = BgeEncoder(sys.argv[1], device="cpu", precision="int8")
print(encoder.encode_documents(["lazy fox"]).shape)
"""


class TestInt8:
    def test_a_first_load_needs_neither_torch_nor_a_quantiser(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", modules=("cls", "normalize"))
        command = [sys.executable, "-c", INT8_WITHOUT, str(folder)]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "(1, 32)\n"

    def test_weights_are_rounded_to_the_nearest_of_255_steps_for_each_output(self) -> None:
        model = random_model(SHAPES[0])
        description = describe_encoder(model)
        assert description is not None
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        weights["embeddings.word_embeddings.weight"][3] = 0  # has no scale
        graph = build_graph(weights, description, cls_only=False, int8="all")
        products = [node.input_values() for node in graph.model.get_ordered_ops() if node.get_type_name() == "Multiply"]
        matrices = [
            values.get_node().input_value(0).get_node().data * scale.get_node().data
            for values, scale in products
            if values.get_node().get_type_name() == "Convert"
        ]
        words = graph.words.rows(np.arange(len(graph.words), dtype=np.int32))
        for name, found in (
            ("embeddings.word_embeddings.weight", [words]),
            ("encoder.layer.0.output.dense.weight", matrices),
        ):
            exact = weights[name]
            half_a_step = np.abs(exact).max(axis=1, keepdims=True) / 253
            same_shape = [matrix for matrix in found if matrix.shape == exact.shape]
            assert any((np.abs(matrix - exact) <= half_a_step).all() for matrix in same_shape)

    @pytest.mark.parametrize(
        ("speeds", "nearness", "chosen"),
        [
            ({"dynamic": 100, "static": 140}, {"dynamic": 0.998, "static": 0.991}, "static"),
            ({"dynamic": 100, "static": 104}, {"dynamic": 0.998, "static": 0.991}, "dynamic"),
            ({"dynamic": 100, "static": 140}, {"dynamic": 0.998, "static": 0.989}, "dynamic"),
            ({"dynamic": 100, "static": 140}, {"dynamic": 0.98, "static": 0.97}, "dynamic"),
            ({"dynamic": 100, "static": 50}, {"dynamic": 0.991, "static": 0.998}, "dynamic"),
        ],
    )
    def test_the_fastest_that_is_near_enough_is_chosen(
        self, speeds: dict[Any, float], nearness: dict[str, float], chosen: str
    ) -> None:
        graph: Any = None
        measured = [
            Measured(
                Way(graph, "int8", name), Agreement(texts=9, mean_cosine=1, least_cosine=nearness[name]), speeds[name]
            )
            for name in speeds
        ]
        assert fastest(measured).way.name == chosen

    def test_the_fastest_is_measured_beside_the_others(
        self, make: MakeCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        manifest = prepare(make("bge-small-en"), tmp_path / "made", precision="int8", quantization="fastest")
        others = ["bfloat16"] if computes_bfloat16() else []
        assert list(manifest.tokens_per_s) == ["float32", *others, "dynamic", "static", "mixed"]
        assert min(manifest.tokens_per_s.values()) > 0
        assert manifest.quantization in ("dynamic", "static", "mixed")
        assert manifest.agreement is not None
        assert manifest.agreement.least_cosine >= 0.99
        rival = manifest.tokens_per_s.get("bfloat16", 0)
        assert ("bfloat16 is faster than int8" in caplog.text) == (rival > manifest.tokens_per_s[manifest.quantization])
        assert PreparedFolder.open(tmp_path / "made").manifest == dataclasses.replace(
            manifest, versions=PreparedFolder.open(tmp_path / "made").manifest.versions
        )

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_stays_near_on_every_shape(self, shape: Shape) -> None:
        model = random_model(shape)
        description = describe_encoder(model)
        assert description is not None
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        graph = build_graph(weights, description, cls_only=True, int8="all")
        engine = OpenVinoEngine(graph, description, rows="cls", precision="int8", threads=2)
        for lengths in LENGTHS.values():
            batch = batch_of(lengths)
            assert cosines(engine.submit(batch).result(), reference(model, batch, 0, "cls")).min() >= 0.98

    @pytest.mark.parametrize("dynamic", ["attention output", "outputs"])
    def test_static_quantisation_stays_near_for_rows_of_cls(self, dynamic: Any) -> None:  # noqa: ANN401
        model = random_model(SHAPES[4])
        description = describe_encoder(model)
        assert description is not None
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        graph = build_graph(weights, description, cls_only=True, int8=dynamic)
        samples = [graph_inputs(batch_of([60, 30, 9], seed=seed), description, graph.words) for seed in range(1, 21)]
        engine = OpenVinoEngine(
            quantize_statically(graph, samples), description, rows="cls", precision="int8", threads=2
        )
        for lengths in LENGTHS.values():
            batch = batch_of(lengths)
            near = cosines(engine.submit(batch).result(), reference(model, batch, 0, "cls"))
            assert near.min() >= 0.998

    def test_static_quantisation_does_not_mistake_the_mask_for_an_activation(self) -> None:
        model = random_model(SHAPES[4])
        description = describe_encoder(model)
        assert description is not None
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        graph = build_graph(weights, description, cls_only=True, int8="attention output")
        samples = [graph_inputs(batch_of([20, 9, 3], seed=seed), description, graph.words) for seed in range(20)]
        graph = quantize_statically(graph, samples)
        engine = OpenVinoEngine(graph, description, rows="cls", precision="int8", threads=2)
        padded = engine.submit(batch_of([20, 9, 3])).result()
        for index, ids in enumerate(np.split(batch_of([20, 9, 3]).ids, [20, 29])):
            alone = engine.submit(type(batch_of([1]))(ids, np.array([len(ids)]))).result()
            assert cosines(padded[index : index + 1], alone)[0] > 0.999

    @pytest.mark.slow
    @pytest.mark.parametrize("quantization", ["static", "dynamic"])
    def test_many_batches_give_what_single_texts_give(self, minilm: str, tmp_path: Path, quantization: Any) -> None:  # noqa: ANN401
        texts = [f"{'The lazy fox jumps over 12 dogs. ' * (1 + index * 7 % 11)}{index}" for index in range(60)]
        prepare(minilm, tmp_path / "made", precision="int8", quantization=quantization, calibration=texts)
        encoder = BgeEncoder(tmp_path / "made", batch_tokens=300)
        together = encoder.encode_documents(texts)
        single = np.concatenate([encoder.encode_documents([text]) for text in texts])
        assert cosines(together, single).min() > 0.995
        assert cosines(together, BgeEncoder(minilm, device="cpu").encode_documents(texts)).min() > 0.98

    def test_is_never_chosen_by_itself(self, bge_small_en: Path) -> None:
        assert BgeEncoder(bge_small_en).backend.request.precision != "int8"

    def test_is_made_from_a_checkpoint_and_kept(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en")
        encoder = BgeEncoder(folder, device="cpu", precision="int8")
        assert encoder.backend.engine.name == "openvino"
        expected = reference_vectors(folder, ["lazy fox", "the quick brown fox"])
        assert cosines(encoder.encode(["lazy fox", "the quick brown fox"]), expected).min() > 0.99
        assert encoder.client is not None

    @pytest.mark.parametrize("quantization", ["static", "dynamic"])
    def test_a_folder_records_how_and_how_well(self, make: MakeCheckpoint, tmp_path: Path, quantization: Any) -> None:  # noqa: ANN401
        texts = [f"{text} {index}" for index in range(6) for text in TEXTS if text]
        manifest = prepare(
            make("bge-small-en"), tmp_path / "made", precision="int8", quantization=quantization, calibration=texts
        )
        assert manifest.quantization == quantization
        assert (manifest.calibration_texts is None) == (quantization == "dynamic")
        assert manifest.agreement is not None
        assert 0.9 < manifest.agreement.least_cosine <= manifest.agreement.mean_cosine <= 1
        encoder = BgeEncoder(tmp_path / "made")
        assert encoder.backend.request.precision == "int8"
        with pytest.raises(SettingsError, match="was prepared in int8"):
            BgeEncoder(tmp_path / "made", precision="float32")

    @pytest.mark.slow
    def test_costs_at_most_half_a_point_on_real_weights(self, minilm: str) -> None:
        """First sentences of docstrings look for the rest of theirs: labels that nobody had to write."""
        queries, documents = _questions_and_answers()
        assert len(queries) > 300
        exact, rounded = (
            [encoder.encode(queries), encoder.encode(documents)]
            for encoder in (
                BgeEncoder(minilm, device="cpu", precision=precision, on_truncation="ignore")
                for precision in ("float32", "int8")
            )
        )
        agreement = cosines(np.concatenate(exact), np.concatenate(rounded))
        assert agreement.mean() >= 0.99
        assert agreement.min() >= 0.98
        score = _ndcg_at_10(*exact)
        assert score > 50  # the labels make sense
        assert _ndcg_at_10(*rounded) >= score - 0.5


def _questions_and_answers() -> tuple[list[str], list[str]]:
    pairs = []
    for entry in collect():
        match = re.match(r"(.{20,150}?[.!?])\s+(.{60,})", entry.text.partition("\n")[2] or entry.text, re.DOTALL)
        if match:
            pairs.append((match[1], match[2]))
    pairs = pairs[::5]
    return [query for query, _ in pairs], [document for _, document in pairs]


def _ndcg_at_10(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> float:
    """nDCG@10 x 100 where the n-th document is the one answer to the n-th query."""
    scores = queries @ documents.T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    return float(100 * np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())
