"""What BgeEncoder computes: equal to the model card's snippet, in order, whatever the company."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.errors import (
    InputTypeError,
    InputValueError,
    ModelClosedError,
    NonFiniteOutputError,
    SettingsError,
    TruncationError,
    TruncationWarning,
)
from bge_integrations.settings import EngineName, TransformersKwargs
from tests.checkpoints import Architecture, reference_vectors
from tests.conftest import MakeCheckpoint

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："

MIXED_LENGTHS = [
    "",
    "fox",
    "The quick brown fox jumps over the lazy dog.",
    "样例数据 向量 检索",
    " ".join(["dense vectors answer questions"] * 6),
    " ".join(["a passage that is far longer than the model reads"] * 30),
    "naïve café 👩‍👩‍👧 [MASK] {query} %s \x00 \t\n end",
]


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("modules", [None, ("cls",), ("cls", "normalize")], ids=["bare", "cls", "cls+normalize"])
def test_vectors_equal_plain_transformers(
    make: MakeCheckpoint, architecture: Architecture, modules: tuple[str, ...] | None
) -> None:
    folder = make("bge-base-en-v1.5", architecture, modules=modules)
    encoder = BgeEncoder(folder, on_truncation="ignore")
    expected = reference_vectors(folder, MIXED_LENGTHS)
    np.testing.assert_allclose(encoder.encode_documents(MIXED_LENGTHS), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(encoder.encode(MIXED_LENGTHS), expected, atol=1e-5, rtol=0)
    expected_queries = reference_vectors(folder, [EN + text for text in MIXED_LENGTHS])
    np.testing.assert_allclose(encoder.encode_queries(MIXED_LENGTHS), expected_queries, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("hidden_size", "heads", "layers"), [(384, 12, 2), (512, 8, 4), (768, 12, 1)], ids=["small-en", "small-zh", "base"]
)
def test_vectors_equal_plain_transformers_in_true_widths(
    make: MakeCheckpoint, hidden_size: int, heads: int, layers: int
) -> None:
    folder = make("bge-small-zh", hidden_size=hidden_size, heads=heads, layers=layers, positions=512)
    texts = ["fox " * count for count in (1, 2, 40, 300, 509, 510, 511, 900)]
    vectors = BgeEncoder(folder, on_truncation="ignore", batch_tokens=1500).encode_documents(texts)
    np.testing.assert_allclose(vectors, reference_vectors(folder, texts, max_length=512), atol=1e-5, rtol=0)


def test_bare_decoders_give_the_last_token_whatever_is_padded(make: MakeCheckpoint) -> None:
    tokenizer_source = make("tokenizer")
    folder = tokenizer_source.parent / "bge-code-v1"
    AutoTokenizer.from_pretrained(tokenizer_source).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = Qwen2Model(config)
    model.train(mode=False)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["fox", "The quick brown fox jumps over the lazy dog.", "dog " * 12, ""]
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))[0][0, -1] for text in texts]
    expected = torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()
    np.testing.assert_allclose(BgeEncoder(folder).encode(texts), expected, atol=1e-5)


def test_vectors_of_other_models_equal_sentence_transformers(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [*MIXED_LENGTHS, "How do I copy a folder?"]
    expected = SentenceTransformer(minilm, device="cpu").encode(texts)
    vectors = BgeEncoder(minilm, device="cpu", on_truncation="ignore").encode(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def test_output_is_contiguous_float32_in_the_order_given(encoder: BgeEncoder) -> None:
    texts = [text for text in MIXED_LENGTHS if len(text) < 100]
    vectors = encoder.encode_documents(texts)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.shape == (len(texts), 32)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(encoder.encode_documents([text])[0], vector, atol=1e-5)


def test_no_texts_give_an_empty_array_of_the_right_width(encoder: BgeEncoder) -> None:
    for method in (encoder.encode, encoder.encode_queries, encoder.encode_documents):
        assert method([]).shape == (0, 32)
        assert method([]).dtype == np.float32
    assert BgeEncoder(encoder.settings.model_name, truncate_dim=8).encode([]).shape == (0, 8)


def test_identical_texts_are_computed_once_and_get_equal_rows(
    encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _record_batches(encoder, monkeypatch)
    vectors = encoder.encode_documents(["fox", "dog", "fox", "fox", "dog"])
    assert sum(count for count, _ in seen) == 2
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[0], vectors[3])
    assert np.array_equal(vectors[1], vectors[4])
    assert vectors.flags.c_contiguous


def test_generators_and_arrays_of_texts_are_taken(encoder: BgeEncoder) -> None:
    texts = ["fox", "lazy dog"]
    expected = encoder.encode(texts)
    assert np.array_equal(encoder.encode(text for text in texts), expected)
    assert np.array_equal(encoder.encode(np.array(texts)), expected)
    assert np.array_equal(encoder.encode(tuple(texts)), expected)


def test_batches_stay_within_the_token_budget(
    bge_small_en: Path, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = BgeEncoder(bge_small_en, batch_tokens=40, batch_size=3)
    sizes = _record_batches(small, monkeypatch)
    texts = ["fox " * count for count in range(1, 30)]
    vectors = small.encode_documents(texts)
    assert all(count == 1 or count * width <= 40 for count, width in sizes)
    assert max(count for count, _ in sizes) == 3
    np.testing.assert_allclose(vectors, encoder.encode_documents(texts), atol=1e-5)


def _record_batches(encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Notes the number of texts and the longest of them, for every batch that reaches an engine."""
    sizes: list[tuple[int, int]] = []

    submit = encoder.backend.engine.submit

    def recording(batch: TokenBatch) -> PendingRows:
        sizes.append(batch.is_token.shape)
        return submit(batch)

    monkeypatch.setattr(encoder.backend.engine, "submit", recording)
    return sizes


class TestInstructions:
    def test_none_takes_the_models_own(self, bge_small_zh: Path) -> None:
        encoder = BgeEncoder(bge_small_zh)
        assert encoder.instruction("query").prefix == ZH
        expected = reference_vectors(bge_small_zh, [ZH + "北京 天气"])
        np.testing.assert_allclose(encoder.encode_queries(["北京 天气"]), expected, atol=1e-5)

    def test_can_be_switched_off(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, query_instruction="")
        np.testing.assert_allclose(
            encoder.encode_queries(["lazy fox"]), reference_vectors(bge_small_en, ["lazy fox"]), atol=1e-5
        )

    def test_an_explicit_one_always_wins_also_for_zh(self, bge_small_zh: Path) -> None:
        encoder = BgeEncoder(bge_small_zh, query_instruction="find: ", document_instruction="read: ")
        np.testing.assert_allclose(
            encoder.encode_queries(["fox"]), reference_vectors(bge_small_zh, ["find: fox"]), atol=1e-5
        )
        np.testing.assert_allclose(
            encoder.encode_documents(["fox"]), reference_vectors(bge_small_zh, ["read: fox"]), atol=1e-5
        )

    def test_is_not_doubled_by_prompts_saved_in_the_checkpoint(self, make: MakeCheckpoint) -> None:
        folder = make(
            "bge-small-en", modules=("cls",), prompts={"query": EN, "document": "doc: "}, default_prompt_name="query"
        )
        encoder = BgeEncoder(folder)
        np.testing.assert_allclose(encoder.encode_queries(["fox"]), reference_vectors(folder, [EN + "fox"]), atol=1e-5)
        for plain in (encoder.encode_documents, encoder.encode):
            np.testing.assert_allclose(plain(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)

    def test_other_models_keep_the_prompts_saved_in_their_checkpoint(self, make: MakeCheckpoint) -> None:
        from sentence_transformers import SentenceTransformer

        folder = make(
            "some-model",
            modules=("mean",),
            prompts={"query": "ask: ", "document": "tell: ", "topic": "group: "},
            default_prompt_name="topic",
        )
        theirs = SentenceTransformer(str(folder), device="cpu")
        ours = BgeEncoder(folder, device="cpu")
        np.testing.assert_allclose(ours.encode_queries(["fox"]), theirs.encode_query(["fox"]), atol=1e-5)
        np.testing.assert_allclose(ours.encode_documents(["fox"]), theirs.encode_document(["fox"]), atol=1e-5)
        np.testing.assert_allclose(ours.encode(["fox"]), theirs.encode(["fox"]), atol=1e-5)

    def test_leaves_the_prompt_out_of_the_mean_where_the_checkpoint_says_so(self, make: MakeCheckpoint) -> None:
        import json

        from sentence_transformers import SentenceTransformer

        folder = make("instructor-like", modules=("mean",), prompts={"query": "dense vectors "})
        config = folder / "1_Pooling" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "include_prompt": False}))
        theirs = SentenceTransformer(str(folder), device="cpu").encode_query(["lazy fox", "a"])
        np.testing.assert_allclose(
            BgeEncoder(folder, device="cpu").encode_queries(["lazy fox", "a"]), theirs, atol=1e-5
        )

    @pytest.mark.parametrize("name", ["bge-large-zh-noinstruct", "bge-m3"])
    def test_models_trained_without_get_none(self, make: MakeCheckpoint, name: str) -> None:
        folder = make(name)
        encoder = BgeEncoder(folder)
        assert np.array_equal(encoder.encode_queries(["fox"]), encoder.encode_documents(["fox"]))

    def test_of_llm_embedder_differs_on_both_sides(self, make: MakeCheckpoint) -> None:
        folder = make("llm-embedder")
        encoder = BgeEncoder(folder)
        query = "Represent this query for retrieving relevant documents: fox"
        document = "Represent this document for retrieval: fox"
        np.testing.assert_allclose(encoder.encode_queries(["fox"]), reference_vectors(folder, [query]), atol=1e-5)
        np.testing.assert_allclose(encoder.encode_documents(["fox"]), reference_vectors(folder, [document]), atol=1e-5)

    def test_task_of_a_model_without_tasks_is_refused(self, bge_small_en: Path) -> None:
        with pytest.raises(SettingsError, match=r"task='find code'.*bge-small-en-v1\.5 takes no task"):
            BgeEncoder(bge_small_en, task="find code")


class TestNormalisation:
    def test_bge_models_give_unit_vectors(self, make: MakeCheckpoint) -> None:
        norms = np.linalg.norm(BgeEncoder(make("bge-small-en")).encode(MIXED_LENGTHS[:5]), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)

    def test_false_gives_the_raw_cls_row(self, bge_small_en: Path) -> None:
        vectors = BgeEncoder(bge_small_en, normalize=False).encode(["lazy fox"])
        expected = reference_vectors(bge_small_en, ["lazy fox"], normalize=False)
        assert abs(np.linalg.norm(expected) - 1) > 0.1
        np.testing.assert_allclose(vectors, expected, atol=1e-5)

    def test_checkpoint_follows_its_modules(self, make: MakeCheckpoint) -> None:
        with_module = BgeEncoder(make("a/bge-small-en", modules=("cls", "normalize")), normalize="checkpoint")
        without = BgeEncoder(make("b/bge-small-en", modules=("cls",)), normalize="checkpoint")
        assert np.linalg.norm(with_module.encode(["fox"])) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(without.encode(["fox"])) != pytest.approx(1, abs=0.1)

    def test_truncated_vectors_have_norm_one_again(self, bge_small_en: Path) -> None:
        vectors = BgeEncoder(bge_small_en, truncate_dim=8).encode(["lazy fox", "dog"])
        expected = reference_vectors(bge_small_en, ["lazy fox", "dog"], normalize=False)[:, :8]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert vectors.flags.c_contiguous
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


class TestTruncation:
    LONG = "fox " * 200

    def test_warns_once_a_call_with_count_longest_and_limit(self, encoder: BgeEncoder) -> None:
        with pytest.warns(TruncationWarning) as caught:
            encoder.encode_documents(["fox", self.LONG, "dog " * 70, self.LONG])
        assert len(caught) == 1
        assert "3 of 4 texts were cut" in str(caught[0].message)
        assert "text 1, has 202 tokens, the limit is 64" in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_warns_again_on_the_next_call(self, encoder: BgeEncoder) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(2):
                encoder.encode_documents([self.LONG])
        assert len(caught) == 2

    def test_error_names_the_first(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, on_truncation="error")
        with pytest.raises(TruncationError, match="Text 2 has 202 tokens, the limit is 64") as caught:
            encoder.encode_documents(["fox", "dog", self.LONG, self.LONG])
        assert caught.value.index == 2

    def test_ignore_says_nothing(self, bge_small_en: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            BgeEncoder(bge_small_en, on_truncation="ignore").encode([self.LONG])

    def test_the_instruction_counts(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, on_truncation="error")
        text = "fox " * 60
        encoder.encode_documents([text])
        with pytest.raises(TruncationError):
            encoder.encode_queries([text])

    def test_a_text_of_exactly_the_limit_is_not_cut(self, bge_small_en: Path) -> None:
        BgeEncoder(bge_small_en, on_truncation="error").encode(["fox " * 62])
        with pytest.raises(TruncationError):
            BgeEncoder(bge_small_en, on_truncation="error").encode(["fox " * 63])

    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_max_length_cuts_as_transformers_does(self, make: MakeCheckpoint, architecture: Architecture) -> None:
        folder = make("bge-small-en", architecture)
        texts = ["The quick brown fox jumps over the lazy dog.", "fox"]
        vectors = BgeEncoder(folder, max_length=7, on_truncation="ignore").encode(texts)
        np.testing.assert_allclose(vectors, reference_vectors(folder, texts, max_length=7), atol=1e-5)

    def test_max_length_beyond_the_models_positions_is_refused(self, make: MakeCheckpoint) -> None:
        with pytest.raises(SettingsError, match="max_length=65 is more than the 64 positions"):
            BgeEncoder(make("bge-m3", "xlm-roberta"), max_length=65)

    def test_max_length_without_room_for_text_is_refused(self, bge_small_en: Path) -> None:
        with pytest.raises(SettingsError, match="max_length=2 leaves no room"):
            BgeEncoder(bge_small_en, max_length=2)


class TestBadInput:
    def test_a_bare_text_is_refused_with_a_hint(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputTypeError, match=r"write encode_queries\(\[text\]\)\[0\]"):
            encoder.encode_queries("fox")

    @pytest.mark.parametrize("bad", [None, 3, b"fox", ["fox"], float("nan")], ids=repr)
    def test_what_is_no_text_is_named_by_index_and_type(self, encoder: BgeEncoder, bad: object) -> None:
        with pytest.raises(InputTypeError, match=f"Text 1 is an? {type(bad).__name__}") as caught:
            encoder.encode(["fox", bad])  # type: ignore[list-item]
        assert caught.value.index == 1

    @pytest.mark.parametrize("bad", [None, 3, b"fox", {"a": 1}], ids=repr)
    def test_what_is_no_list_of_texts_is_refused(self, encoder: BgeEncoder, bad: object) -> None:
        with pytest.raises(InputTypeError, match="takes a list of texts"):
            encoder.encode(bad)  # type: ignore[arg-type]

    def test_a_set_of_texts_is_refused(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputTypeError, match="no order to keep"):
            encoder.encode({"a", "b"})

    def test_lone_surrogates_are_named_by_index(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputValueError, match=r"Text 2 has a lone surrogate.*at character 3") as caught:
            encoder.encode(["fox", "👩", "abc\ud83d", "\udc00"])
        assert caught.value.index == 2

    def test_is_refused_before_any_work(self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[object] = []
        monkeypatch.setattr(encoder.backend.engine, "submit", calls.append)
        with pytest.raises(InputTypeError):
            encoder.encode(["fox"] * 5000 + [None])  # type: ignore[list-item]
        assert calls == []

    def test_is_caught_by_the_built_in_classes_too(self, encoder: BgeEncoder) -> None:
        with pytest.raises(TypeError):
            encoder.encode([None])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="surrogate"):
            encoder.encode(["\ud800"])

    def test_errors_survive_pickling(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputTypeError) as caught:
            encoder.encode(["fox", None])  # type: ignore[list-item]
        restored = pickle.loads(pickle.dumps(caught.value))
        assert (str(restored), restored.index) == (str(caught.value), 1)


@pytest.mark.parametrize("engine", ["openvino", "torch", "sentence-transformers"])
def test_non_finite_output_names_the_text_and_gives_no_vector(make: MakeCheckpoint, engine: EngineName) -> None:
    folder = make("bge-small-en")
    # The damage of a real case: one row of the embedding table overflowed when the checkpoint was converted.
    (broken,) = set(AutoTokenizer.from_pretrained(folder).encode("@")[1:-1])
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][broken] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = BgeEncoder(folder, engine=engine)
    with pytest.raises(NonFiniteOutputError, match="text 2") as caught:
        encoder.encode(["fox", "dog", "fox @ dog", "a much longer text than the others @"])
    assert caught.value.index == 2
    assert np.isfinite(encoder.encode(["fox", "dog"])).all()


class TestProgress:
    def test_is_off_by_default(self, encoder: BgeEncoder, capfd: pytest.CaptureFixture[str]) -> None:
        encoder.encode_documents(["fox", "dog"])
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", "")

    def test_counts_texts_and_shows_tokens_per_second(
        self, bge_small_en: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        encoder = BgeEncoder(bge_small_en, show_progress=True)
        capfd.readouterr()
        encoder.encode_documents(["fox", "dog", "fox"])
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "3/3" in captured.err
        assert "text/s" in captured.err
        assert "tokens/s" in captured.err

    def test_is_never_shown_for_queries(self, bge_small_en: Path, capfd: pytest.CaptureFixture[str]) -> None:
        encoder = BgeEncoder(bge_small_en, show_progress=True)
        capfd.readouterr()
        encoder.encode_queries(["fox"] * 3)
        assert capfd.readouterr().err == ""


class TestLifeCycle:
    @pytest.fixture(params=["pickle", "copy", "deepcopy"])
    def twin(self, request: pytest.FixtureRequest, encoder: BgeEncoder) -> BgeEncoder:
        ways: dict[str, Callable[[], BgeEncoder]] = {
            "pickle": lambda: pickle.loads(pickle.dumps(encoder)),
            "copy": lambda: copy.copy(encoder),
            "deepcopy": lambda: copy.deepcopy(encoder),
        }
        return ways[request.param]()

    def test_copies_and_pickles_work_and_share_the_model(self, encoder: BgeEncoder, twin: BgeEncoder) -> None:
        assert np.array_equal(twin.encode(["fox"]), encoder.encode(["fox"]))
        assert twin.backend is encoder.backend
        assert twin.settings == encoder.settings

    def test_pickles_carry_settings_not_weights_and_no_token(self, minilm: str) -> None:
        pickled = pickle.dumps(BgeEncoder(minilm, token="hf_secret"))
        assert len(pickled) < 10_000
        assert b"hf_secret" not in pickled

    def test_token_is_never_shown(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, token="hf_secret")
        assert "hf_secret" not in repr(encoder) + repr(encoder.settings) + repr(encoder.backend.request)

    def test_use_after_close_is_refused_and_closing_twice_is_fine(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en)
        encoder.close()
        encoder.close()
        with pytest.raises(ModelClosedError, match="was closed"):
            encoder.encode(["fox"])

    def test_works_as_a_context_manager(self, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en) as encoder:
            assert encoder.encode(["fox"]).shape == (1, 32)
        with pytest.raises(ModelClosedError):
            encoder.encode(["fox"])


class TestCacheNamespace:
    def test_differs_by_role_and_by_what_changes_vectors(self, bge_small_en: Path, bge_small_zh: Path) -> None:
        names = [
            BgeEncoder(bge_small_en).cache_namespace("document"),
            BgeEncoder(bge_small_en).cache_namespace("query"),
            BgeEncoder(bge_small_en, query_instruction="find: ").cache_namespace("query"),
            BgeEncoder(bge_small_en, truncate_dim=8).cache_namespace("document"),
            BgeEncoder(bge_small_en, normalize=False).cache_namespace("document"),
            BgeEncoder(bge_small_en, max_length=9).cache_namespace("document"),
            BgeEncoder(bge_small_en, precision="bfloat16").cache_namespace("document"),
            BgeEncoder(bge_small_zh).cache_namespace("document"),
            BgeEncoder(
                bge_small_en, transformers_kwargs=TransformersKwargs.of(config={"layer_norm_eps": 0.5})
            ).cache_namespace("document"),
        ]
        assert len(set(names)) == len(names)

    def test_is_equal_where_vectors_are(self, bge_small_en: Path) -> None:
        first = BgeEncoder(bge_small_en).cache_namespace("document")
        assert first == BgeEncoder(bge_small_en, query_instruction="x", batch_tokens=99).cache_namespace("document")
        assert first.startswith("bge-small-en-v1.5_document_")

    def test_is_the_same_in_every_version_of_this_package(self, minilm: str) -> None:
        """Another name here is a cache lost for every user: change `_NAMESPACE_FORMAT` only if vectors change."""
        names = {role: BgeEncoder(minilm, device="cpu").cache_namespace(role) for role in ("query", "document")}
        assert names == {
            "query": "model_query_e9c63db61b971bdd",
            "document": "model_document_e9c63db61b971bdd",
        }
