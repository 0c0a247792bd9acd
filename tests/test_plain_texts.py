"""What a user may give where a text or a list of texts belongs: its plain value is used, or it is refused by name."""

from __future__ import annotations

import asyncio
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.calls.inputs import check_text, check_texts, slices_of_pairs
from bge_integrations.calls.progress import Progress
from bge_integrations.errors import InputTypeError, SettingsError
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.langchain import BgeSparseEmbeddings, HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import BgeRerank, BgeSparseEmbedding, HuggingFaceBgeEmbedding
from bge_integrations.settings import EncoderSettings, ModelSettings, RerankerSettings
from bge_integrations.texts import kind_of


class Topic(str, Enum):
    """A text to everything but `str()`, `format` and `hash`."""

    FOX = "the quick brown fox"
    PROMPT = "Represent: "
    QUERY = "query"


class Strange(str):
    """A text that says something else of itself wherever it can."""

    def __str__(self) -> str:
        return "wrong"

    def __format__(self, spec: str) -> str:
        return "wrong"

    def __hash__(self) -> int:
        raise TypeError("no hash")

    def __len__(self) -> int:
        raise TypeError("no length")

    def encode(self, *_: object) -> bytes:
        return b"wrong"

    def isascii(self) -> bool:
        return True


FORMS = [Topic.FOX, Strange("the quick brown fox"), np.str_("the quick brown fox")]
PLAIN = "the quick brown fox"


def vectors_of(way: Callable[[str], Any], text: str) -> Any:  # noqa: ANN401 - arrays, lists, dictionaries
    found = way(text)
    return np.asarray(found) if isinstance(found, (list, np.ndarray, float)) else found


class TestClassesOfStr:
    @pytest.mark.parametrize("text", FORMS, ids=lambda text: type(text).__name__)
    def test_give_a_plain_str(self, text: str) -> None:
        assert type(check_text(text)) is str
        assert [type(each) for each in check_texts([text], "encode")] == [str]
        assert check_text(text) == PLAIN

    def test_a_plain_str_is_not_copied(self) -> None:
        text = "x" * 1000
        assert check_text(text) is text

    def test_their_surrogates_are_found(self) -> None:
        with pytest.raises(ValueError, match=r"Text 0 has a lone surrogate \('\\udcf6'\) at character 2"):
            check_text(Strange("ab\udcf6"))

    def test_what_only_claims_to_be_a_str_is_none(self) -> None:
        with pytest.raises(InputTypeError, match="Text 0 is a Mock, not a str"):
            check_text(Mock(spec=str))

    def test_are_encoded_as_what_they_hold(self, bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path) -> None:
        encoder, langchain, llama_index = (
            BgeEncoder(bge_small_en),
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)),
            HuggingFaceBgeEmbedding(str(bge_small_en)),
        )
        reranker, langchain_reranker = (
            BgeReranker(bge_reranker_base),
            LangChainReranker(model_name=str(bge_reranker_base)),
        )
        m3, sparse = BgeM3Encoder(bge_m3), BgeSparseEmbeddings(model_name=str(bge_m3))
        llama_index_sparse = BgeSparseEmbedding(str(bge_m3))
        ways: dict[str, Callable[[str], Any]] = {
            "encode": lambda text: encoder.encode([text, text]),
            "encode_queries": lambda text: encoder.encode_queries(iter([text])),
            "aencode_documents": lambda text: asyncio.run(encoder.aencode_documents([text])),
            "count_tokens": lambda text: encoder.count_tokens([text]),
            "chunk_tokens": encoder.chunk_tokens,
            "embed_query": langchain.embed_query,
            "embed_documents": lambda text: langchain.embed_documents([text]),
            "get_query_embedding": llama_index.get_query_embedding,
            "get_text_embedding": llama_index.get_text_embedding,
            "get_text_embedding_batch": lambda text: llama_index.get_text_embedding_batch([text]),
            "score's query": lambda text: reranker.score(text, ["fox"]),
            "score's passages": lambda text: reranker.score("fox", [text]),
            "ascore": lambda text: asyncio.run(reranker.ascore(text, [text])),
            "score_pairs": lambda text: reranker.score_pairs([(text, text)]),
            "cross encoder": lambda text: langchain_reranker.score([(text, "fox")]),
            "m3": lambda text: m3.encode_queries([text]).sparse,
            "m3's score": lambda text: m3.score(text, [text, "dog"]),
            "query_weights": sparse.query_weights,
            "document_weights": lambda text: sparse.document_weights([text]),
            "sparse_doc_fn": lambda text: llama_index_sparse.sparse_doc_fn([text]),
        }
        for name, way in ways.items():
            expected = vectors_of(way, PLAIN)
            for text in FORMS:
                np.testing.assert_array_equal(vectors_of(way, text), expected, err_msg=f"{name} of {type(text)}")

    def test_are_plain_in_every_setting(self, bge_small_en: Path) -> None:
        class Word(str, Enum):
            CPU = "cpu"
            FLOAT32 = "float32"
            TORCH = "torch"
            WARN = "warn"
            CHECKPOINT = "checkpoint"
            MAIN = "main"

        settings = EncoderSettings(
            model_name=Strange(str(bge_small_en)),
            device=[Word.CPU, Strange("cpu")],
            precision=Word.FLOAT32,  # type: ignore[arg-type]
            engine=Word.TORCH,  # type: ignore[arg-type]
            on_truncation=Word.WARN,  # type: ignore[arg-type]
            normalize=Word.CHECKPOINT,  # type: ignore[arg-type]
            revision=Word.MAIN,
            cache_folder=Strange("/cache"),
            token=Strange("secret"),
            query_instruction=Topic.PROMPT,
            document_instruction=Topic.PROMPT,
        )
        values = [getattr(settings, name) for name in settings.__dataclass_fields__]
        texts = [value for value in values if isinstance(value, str)]
        assert len(texts) == 10
        assert {type(text) for text in texts} == {str}
        assert [type(each) for each in settings.device or ()] == [str, str]
        more = EncoderSettings(model_name="m", task=Topic.FOX, examples=[(Topic.FOX, Topic.QUERY, Topic.FOX)])
        assert [type(each) for each in (more.task, *(more.examples or ())[0])] == [str] * 4
        assert type(RerankerSettings(model_name="m", prompt=Topic.FOX).prompt) is str

    def test_work_as_instruction_prompt_and_role(self, bge_small_en: Path) -> None:
        folder = str(bge_small_en)
        plain = BgeEncoder(folder, query_instruction="Represent: ")
        expected = plain.encode_queries(["fox"])[0]
        encoder = BgeEncoder(folder, query_instruction=Topic.PROMPT)
        assert encoder.backend is plain.backend
        np.testing.assert_array_equal(encoder.encode_queries(["fox"])[0], expected)
        role: Any = Topic.QUERY
        assert encoder.instruction(role).prefix == "Represent: "
        assert encoder.cache_namespace(role) == plain.cache_namespace("query")
        for further in (
            {"encode_kwargs": {"prompt": Topic.PROMPT}},
            {"model_kwargs": {"prompts": {Topic.QUERY: Topic.PROMPT}}},
            {"model_kwargs": {"prompts": {"mine": "Represent: "}}, "encode_kwargs": {"prompt_name": Strange("mine")}},
        ):
            langchain = HuggingFaceBgeEmbeddings(model_name=folder, **further)
            np.testing.assert_allclose(langchain.embed_query("fox"), expected, atol=1e-6)


class Table:
    """Iterates over the names of its columns, as those of some libraries."""

    def __init__(self, **labels: Any) -> None:  # noqa: ANN401
        self.__dict__.update(labels)

    def __iter__(self) -> Iterator[str]:
        return iter(["text"])

    def __len__(self) -> int:
        return 3


class TestTables:
    FRAME = pd.DataFrame({"text": ["fox", "dog"], "title": ["a", "b"]})
    TABLES: tuple[tuple[str, Any], ...] = (
        ("a frame of one column", FRAME[["text"]]),
        ("a frame", FRAME),
        ("like polars", Table(columns=["text"])),
        ("like datasets", Table(column_names=["text"])),
        ("like xarray", Table(keys=lambda: ["text"])),
        ("a dictionary", {"text": ["fox"]}),
        ("a mapping", UserDict(text="fox")),
        ("an array without dimensions", np.array("fox")),
        ("a matrix", np.array([["fox", "dog"]])),
        ("a tensor without dimensions", torch.tensor(1)),
        ("a tensor", torch.zeros(2, 2)),
    )

    @pytest.mark.parametrize("table", [table for _, table in TABLES], ids=[name for name, _ in TABLES])
    def test_are_refused_with_the_remedy(self, table: Any) -> None:  # noqa: ANN401
        with pytest.raises(InputTypeError, match=r"encode takes a list of texts, but was given an?") as caught:
            check_texts(table, "encode")
        remedy = "pass a list" if getattr(table, "ndim", None) == 0 else 'df["text"]'
        assert remedy in str(caught.value)
        with pytest.raises(InputTypeError, match=r"takes a list of pairs \(query, passage\), but was given an?"):
            slices_of_pairs(table, "score_pairs", 8)

    def test_of_arrow_are_refused_with_the_remedy(self) -> None:
        table = pytest.importorskip("pyarrow").table({"text": ["fox", "dog"]})
        with pytest.raises(InputTypeError, match=r"given a Table, which has keys or columns; .* df\["):
            check_texts(table, "encode")

    def test_are_refused_wherever_a_list_of_texts_belongs(
        self, bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path
    ) -> None:
        frame: Any = self.FRAME[["text"]]
        encoder, reranker, m3 = BgeEncoder(bge_small_en), BgeReranker(bge_reranker_base), BgeM3Encoder(bge_m3)
        langchain, llama_index = (
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en)),
            HuggingFaceBgeEmbedding(str(bge_small_en)),
        )
        sparse = BgeSparseEmbedding(str(bge_m3))
        ways: list[Callable[[], Any]] = [
            lambda: encoder.encode(frame),
            lambda: asyncio.run(encoder.aencode_queries(frame)),
            lambda: encoder.count_tokens(frame),
            lambda: reranker.score("fox", frame),
            lambda: reranker.score_pairs(self.FRAME),
            lambda: asyncio.run(reranker.ascore_pairs(self.FRAME)),
            lambda: m3.encode_documents(frame),
            lambda: m3.score("fox", frame),
            lambda: m3.score_pairs(self.FRAME),
            lambda: langchain.embed_documents(frame),
            lambda: llama_index.get_text_embedding_batch(frame),
            lambda: asyncio.run(llama_index.aget_text_embedding_batch(frame)),
            lambda: sparse.get_text_embedding_batch(frame),
            lambda: asyncio.run(sparse.aget_text_embedding_batch(frame)),
        ]
        for way in ways:
            with pytest.raises(InputTypeError, match="a DataFrame, which has keys or columns; pass"):
                way()

    def test_what_gives_its_texts_in_order_is_taken(self) -> None:
        texts = ["fox", "dog"]
        columns: list[Any] = [
            self.FRAME["text"],
            self.FRAME.set_index("title")["text"],
            pd.Series(texts, index=["columns", "keys"]),
            pd.Index(texts),
            np.array(texts),
            np.array(texts, dtype=object),
            tuple(texts),
            deque(texts),
            (text for text in texts),
            dict.fromkeys(texts).keys(),
            {1: "fox", 2: "dog"}.values(),
        ]
        for column in columns:
            assert check_texts(column, "encode") == texts
        _, slices = slices_of_pairs({"fox": "dog"}.items(), "score_pairs", 8)
        assert list(slices) == [[("fox", "dog")]]
        _, slices = slices_of_pairs(self.FRAME.itertuples(index=False), "score_pairs", 8)
        assert list(slices) == [[("fox", "a"), ("dog", "b")]]

    def test_a_set_has_no_order(self) -> None:
        with pytest.raises(InputTypeError, match="a frozenset, which has no order to keep"):
            check_texts(frozenset({"fox"}), "encode")


BAD = "Zusammengeh\udcf6rig: "
ABOUT = r"has a lone surrogate \('\\udcf6'\) at character 11, which UTF-8 can't write"


class TestSettings:
    @pytest.mark.parametrize(
        "name",
        [
            *("model_name", "device", "revision", "cache_folder", "token", "query_instruction"),
            *("document_instruction", "task", "precision", "engine", "on_truncation", "normalize", "pooling"),
        ],
    )
    def test_a_lone_surrogate_is_named_with_the_setting(self, name: str) -> None:
        settings: dict[str, Any] = {"model_name": "m", name: BAD}
        with pytest.raises(SettingsError, match=f"^{name} {ABOUT}") as caught:
            EncoderSettings(**settings)
        assert BAD not in str(caught.value)

    def test_a_lone_surrogate_is_named_in_what_holds_several_texts(self) -> None:
        with pytest.raises(SettingsError, match=rf"^The query of examples\[1\] {ABOUT}"):
            EncoderSettings(model_name="m", examples=[("a", "b", "c"), ("a", BAD, "c")])
        with pytest.raises(SettingsError, match=rf"^device\[1\] {ABOUT}"):
            ModelSettings(model_name="m", device=["cpu", BAD])
        with pytest.raises(SettingsError, match=f"^prompt {ABOUT}"):
            RerankerSettings(model_name="m", prompt=BAD)

    def test_a_lone_surrogate_is_named_as_the_adapters_call_it(self, bge_small_en: Path) -> None:
        folder = str(bge_small_en)
        langchain: list[tuple[str, dict[str, Any]]] = [
            ("embed_instruction", {"embed_instruction": BAD}),
            ("query_instruction", {"query_instruction": BAD}),
            (r"encode_kwargs\['prompt'\]", {"encode_kwargs": {"prompt": BAD}}),
            (r"encode_kwargs\['prompt_name'\]", {"encode_kwargs": {"prompt_name": BAD}}),
            (r"model_kwargs\['prompts'\]\['query'\]", {"model_kwargs": {"prompts": {"query": BAD}}}),
            (r"model_kwargs\['default_prompt_name'\]", {"model_kwargs": {"default_prompt_name": BAD}}),
        ]
        for name, settings in langchain:
            with pytest.raises(ValueError, match=f"{name} {ABOUT}"):
                HuggingFaceBgeEmbeddings(model_name=folder, **settings)
        for name in ("text_instruction", "query_instruction"):
            with pytest.raises(SettingsError, match=f"{name} {ABOUT}"):
                HuggingFaceBgeEmbedding(folder, **{name: BAD})
        with pytest.raises(SettingsError, match=f"query_instruction {ABOUT}"):
            BgeRerank("m", query_instruction=BAD)

    @pytest.mark.parametrize(("name", "value"), [("revision", 3), ("cache_folder", 3), ("task", ["a"])])
    def test_what_is_no_text_is_named(self, name: str, value: object) -> None:
        settings: dict[str, Any] = {"model_name": "m", name: value}
        with pytest.raises(SettingsError, match=f"{name}=.* is {kind_of(value)}; give a text or None"):
            EncoderSettings(**settings)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        *((3, "an int"), ("", "a str"), ([], "a list"), (None, "a NoneType"), (np.zeros(1), "an ndarray")),
        *((np.uint8(3), "a uint8"), (pd.Index([]), "an Index"), (UserDict(), "a UserDict")),
    ],
)
def test_types_are_named_with_their_article(value: object, named: str) -> None:
    assert kind_of(value) == named


def test_documents_come_back_with_metadata_that_cant_be_copied(bge_reranker_base: Path, tmp_path: Path) -> None:
    from langchain_core.documents import Document

    with (tmp_path / "open.txt").open("w") as stream:
        held = {"stream": stream, "inside": {"of": [stream]}, "at": [1]}
        documents = [Document(text, metadata={**held, "place": place}) for place, text in enumerate(["fox", "dog"])]
        found = LangChainReranker(model_name=str(bge_reranker_base)).compress_documents(documents, "fox")
        asynchronous = LangChainReranker(model_name=str(bge_reranker_base)).acompress_documents(documents, "fox")
        assert [document.metadata for document in asyncio.run(asynchronous)] == [one.metadata for one in found]
    for document in found:
        assert document.metadata["stream"] is stream
        document.metadata["at"].append(2)
        document.metadata["inside"]["more"] = 3
    assert [document.metadata for document in documents] == [{**held, "place": place} for place in range(2)]
    assert held["at"] == [1]


def test_the_bar_counts_the_tokens_of_the_texts_that_it_counts(
    bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[int, int]] = []
    monkeypatch.setattr(Progress, "add", lambda _, texts, tokens: counted.append((texts, tokens)))
    encoder = BgeEncoder(bge_small_en, device="cpu", show_progress=True)
    texts = ["fox", "the lazy dog", "fox", "fox", "the lazy dog", "vector"]
    encoder.encode_documents(texts)
    texts_counted, tokens_counted = (sum(numbers) for numbers in zip(*counted, strict=True))
    assert (texts_counted, tokens_counted) == (6, int(encoder.count_tokens(texts).sum()))
