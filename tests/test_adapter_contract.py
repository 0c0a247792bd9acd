"""What all eight classes of both frameworks promise alike; one table says how each of them is used."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from langchain_qdrant import SparseVector
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import SecretStr, ValidationError

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, langchain, llama_index
from bge_integrations.errors import InputTypeError, InputValueError, InvalidInputError, ModelClosedError, SettingsError
from bge_integrations.settings import (
    EncoderSettings,
    ModelSettings,
    RerankerSettings,
    TransformersKwargs,
    description,
)
from tests.adapters import assert_close, everything_of, run_off_the_loop
from tests.checkpoints_of_pairs import make_m3, make_reranker
from tests.llama_index.events import watched

NOWHERE = "./no-such-folder"
TEXT = "The quick brown fox jumps over the lazy dog."
SECRET = "hf_secret"
BOUND = 10_000
"""Bytes of saved settings at most; the weights of the tiny checkpoints alone are more."""


@dataclass(frozen=True)
class Call:
    """A method that takes a text, and its async twin, whose name has an `a` before it.

    Attributes:
        name: Of the method.
        arguments: Makes its arguments of a text.
        position: Where the text is among them, as errors count.
    """

    name: str
    arguments: Callable[[Any], tuple[Any, ...]]
    position: int = 0

    def run(self, adapter: Any, text: object = TEXT) -> Any:  # noqa: ANN401 - any of the classes, and its results
        return getattr(adapter, self.name)(*self.arguments(text))

    async def arun(self, adapter: Any, text: object = TEXT) -> Any:  # noqa: ANN401 - as above
        return await getattr(adapter, f"a{self.name}")(*self.arguments(text))


@dataclass(frozen=True)
class Row:
    """One of the classes.

    Attributes:
        kind: The class.
        settings: The settings whose every field it takes.
        core: The class of the core that it holds.
        holder: The attribute that gives it.
        checkpoint: The fixture of a model for it.
        another: Makes another such model.
        calls: What it computes with.
        keywords: The field for arguments of sentence-transformers.
        renamed: Fields that have another name than the setting.
        defaults: Defaults that it has from the class that it replaces.
        given: Fields of its own, with a value that is not the default.
        wrong: Wrong values of its own, with what the error says.
    """

    kind: type[Any]
    settings: type[ModelSettings]
    core: type[Any]
    holder: str
    checkpoint: str
    another: Callable[[Path], Path]
    calls: tuple[Call, ...]
    keywords: str = "model_kwargs"
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    wrong: tuple[tuple[dict[str, Any], str], ...] = ()

    def __str__(self) -> str:
        return f"{self.framework}.{self.kind.__name__}"

    @property
    def framework(self) -> str:
        return str(self.kind.__module__.split(".")[1])

    def make(self, folder: object, **settings: Any) -> Any:  # noqa: ANN401 - an instance of the class
        return self.kind(model_name=folder, **settings)

    def held(self, adapter: Any) -> Any:  # noqa: ANN401 - an encoder or a reranker
        return getattr(adapter, self.holder)

    def read(self, adapter: Any) -> ModelSettings:  # noqa: ANN401
        """The settings that the fields say now; nothing is loaded for it."""
        said = adapter._settings()
        settings: ModelSettings = getattr(said, "common", said)
        return settings

    def compute(self, adapter: Any) -> list[float]:  # noqa: ANN401
        return numbers([call.run(adapter) for call in self.calls])


def numbers(found: Any) -> list[float]:  # noqa: ANN401 - vectors, weights, documents, nodes
    """Every number of a result, in a fixed order."""
    if isinstance(found, (int, float)):
        return [float(found)]
    if isinstance(found, SparseVector):
        return numbers(dict(zip(found.indices, found.values, strict=True)))
    if isinstance(found, Document):
        return numbers([int(found.id or 0), found.metadata["relevance_score"]])
    if isinstance(found, NodeWithScore):
        return numbers([int(found.node_id), found.get_score(raise_error=True)])
    parts = [part for key in sorted(found) for part in (key, found[key])] if isinstance(found, dict) else found
    return [number for part in parts for number in numbers(part)]


class OwnNode(TextNode):
    """A user's own kind of node, whose content nobody has checked."""

    content: Any = ""

    def get_content(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> Any:  # noqa: ANN401
        return self.content


def nodes(*contents: object) -> list[NodeWithScore]:
    return [NodeWithScore(node=OwnNode(id_=str(at), content=one), score=0.5) for at, one in enumerate(contents)]


DOCUMENTS = [Document("a lazy dog", id="0"), Document("dense vectors", id="1")]
EMBEDDING = (
    Call("embed_documents", lambda text: (["fox", text],), 1),
    Call("embed_query", lambda text: (text,)),
)
COMPRESSING = (
    Call("compress_documents", lambda text: (DOCUMENTS, text)),
    Call("score", lambda text: ([("fox", "dog"), ("fox", text)],), 1),
    Call("score", lambda text: ([("fox", "dog"), ("fox", "dog"), (text, "dog")],), 2),
)
WEIGHING = (
    Call("document_weights", lambda text: (["fox", text],), 1),
    Call("query_weights", lambda text: (text,)),
)
GETTING = (
    Call("get_text_embedding_batch", lambda text: (["fox", text],), 1),
    Call("get_text_embedding", lambda text: (text,)),
    Call("get_query_embedding", lambda text: (text,)),
)
POSTPROCESSING = (
    Call("postprocess_nodes", lambda text: (nodes("fox", text), QueryBundle("a lazy dog")), 1),
    Call("postprocess_nodes", lambda text: (nodes("fox", "dog"), QueryBundle(text))),
)
EMBEDDER: dict[str, Any] = {
    "settings": EncoderSettings,
    "core": BgeEncoder,
    "holder": "encoder",
    "checkpoint": "bge_small_en",
    # bge-m3's dense vectors
    "another": lambda folder: make_m3(folder, seed=5),
}
RERANKER: dict[str, Any] = {
    "settings": RerankerSettings,
    "core": BgeReranker,
    "holder": "reranker",
    "checkpoint": "bge_reranker_base",
    "another": lambda folder: make_reranker(folder, seed=5),
}
M3: dict[str, Any] = {
    "settings": ModelSettings,
    "core": BgeM3Encoder,
    "holder": "encoder",
    "checkpoint": "bge_m3",
    "another": lambda folder: make_m3(folder, seed=5),
}
THRESHOLD = ({"score_threshold": float("nan")}, "score_threshold")
TOP_N = ({"top_n": 0}, "top_n")
WEIGHTS = tuple(({"weights": given}, "weights") for given in ((0, 0, 0), (-1, 1, 1), (1, 1), (float("nan"), 1, 1)))
NORMALIZE = ({"normalize": "checkpoint"}, "normalize")
TRUNCATE = ({"truncate_dim": 0}, "truncate_dim=0 must be a whole number of at least 1")
BATCHES = ({"embed_batch_size": 5000}, "embed_batch_size")
NO_VECTORS = ({"truncate_dim": 8}, "truncate_dim")

ROWS = (
    Row(
        langchain.HuggingFaceBgeEmbeddings,
        **EMBEDDER,
        calls=EMBEDDING,
        renamed={"document_instruction": "embed_instruction"},
        given={
            "encode_kwargs": {"truncate_dim": 8, "device": torch.device("cpu")},
            "query_encode_kwargs": {"prompt": "ask: "},
            "multi_process": True,
        },
        wrong=(
            TRUNCATE,
            ({"encode_kwargs": {"x": 1}}, r"encode_kwargs\['x'\] is unknown; the known keys are .*prompt"),
        ),
    ),
    Row(
        langchain.BgeReranker,
        **RERANKER,
        calls=COMPRESSING,
        given={"top_n": 1, "score_threshold": -9.5},
        wrong=(TOP_N, THRESHOLD, NORMALIZE, NO_VECTORS),
    ),
    Row(
        langchain.BgeM3Reranker,
        **M3,
        calls=COMPRESSING,
        given={"top_n": 1, "score_threshold": -9.5, "weights": (0.5, 0.25, 0.25)},
        wrong=(TOP_N, THRESHOLD, *WEIGHTS, NO_VECTORS),
    ),
    Row(langchain.BgeSparseEmbeddings, **M3, calls=(*EMBEDDING, *WEIGHING), wrong=(NORMALIZE, NO_VECTORS)),
    Row(
        llama_index.HuggingFaceBgeEmbedding,
        **EMBEDDER,
        calls=GETTING,
        keywords="sentence_transformer_kwargs",
        renamed={"document_instruction": "text_instruction", "show_progress": "show_progress_bar"},
        defaults={"normalize": True},
        given={"embed_batch_size": 7, "num_workers": 2, "parallel_process": True, "target_devices": ["cpu"]},
        wrong=(TRUNCATE, BATCHES),
    ),
    Row(
        llama_index.BgeRerank,
        **RERANKER,
        calls=POSTPROCESSING,
        keywords="cross_encoder_kwargs",
        given={"top_n": 1, "keep_retrieval_score": True, "metadata_mode": "none"},
        wrong=(TOP_N, NORMALIZE, NO_VECTORS),
    ),
    Row(
        llama_index.BgeM3Rerank,
        **M3,
        calls=POSTPROCESSING,
        keywords="sentence_transformer_kwargs",
        given={"top_n": 1, "keep_retrieval_score": True, "metadata_mode": "none", "weights": (0.5, 0.25, 0.25)},
        wrong=(TOP_N, *WEIGHTS, NO_VECTORS),
    ),
    Row(
        llama_index.BgeSparseEmbedding,
        **M3,
        calls=GETTING,
        keywords="sentence_transformer_kwargs",
        given={"embed_batch_size": 7, "num_workers": 2},
        wrong=(NORMALIZE, NO_VECTORS, BATCHES),
    ),
)


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


@pytest.fixture
def folder(row: Row, request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(row.checkpoint)
    return found


KEYWORDS: dict[str, Any] = {
    "device": torch.device("cpu"),
    "model_kwargs": {"attn_implementation": "eager", "torch_dtype": torch.float32},
    "processor_kwargs": {"truncation_side": "left"},
}


@pytest.fixture(scope="module", autouse=True)
def _kept(
    kept_small_en: object, kept_m3: object, kept_reranker_base: object, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Equal settings join these models, as they are and with the keywords above."""
    rows = {row.checkpoint: row for row in ROWS}
    made = [row.make(request.getfixturevalue(name), **{row.keywords: KEYWORDS}) for name, row in rows.items()]
    yield
    del made


class TestSettings:
    # Of each setting a value that is not the default, and that every model's settings take.
    VALUES: Mapping[str, Any] = {
        "model_name": "another",
        "device": "cpu:0",
        "precision": "bfloat16",
        "engine": "torch",
        "max_length": 16,
        "query_instruction": "find: ",
        "on_truncation": "ignore",
        "revision": "v2",
        "cache_folder": "somewhere",
        "token": "abc",
        "trust_remote_code": True,
        "local_files_only": True,
        "allow_pickle_weights": True,
        "show_progress": True,
        "batch_tokens": 256,
        "batch_size": 3,
        "threads": 1,
        "max_queued_texts": 7,
        "document_instruction": "text: ",
        "task": "find it",
        "examples": [("a", "b", "c")],
        "pooling": "mean",
        "normalize": True,
        "truncate_dim": 8,
        "prompt": "is it so?",
        "cutoff_layers": [8],
        "compress_ratio": 2,
        "compress_layers": [4, 8],
        "endpoint": "http://localhost:1",
        "api_key": "a key",
        "endpoint_options": {"timeout": 5.0},
    }

    def test_each_is_a_field_with_its_default_and_its_text(self, row: Row) -> None:
        shown = inspect.signature(row.kind).parameters
        for setting in dataclasses.fields(row.settings):
            if setting.name == "transformers_kwargs":
                assert row.keywords in shown
                continue
            name = row.renamed.get(setting.name, setting.name)
            taken = row.kind.model_fields[name]
            parameter = shown["model" if row.framework == "langchain" and name == "model_name" else name]
            if name == "model_name":  # each class has a model of its own
                assert "BAAI/bge-" in taken.default
                continue
            if name == "endpoint_options":  # a dictionary here, so that it can be written as JSON
                assert taken.default_factory is dict
                continue
            assert taken.default == parameter.default == row.defaults.get(setting.name, setting.default), name
            if not (name == "show_progress" and row.calls is POSTPROCESSING):  # where it has no effect
                assert taken.description == description(setting.name, row.settings), name

    def test_each_reaches_the_core(self, row: Row, folder: Path) -> None:
        # No server gives token vectors.
        here = row.make(folder, **({"weights": (0.5, 0.5, 0.0)} if "weights" in row.kind.model_fields else {}))
        there = here.model_copy(update={"endpoint": "http://localhost:2"})
        for setting in dataclasses.fields(row.settings):
            is_for_servers = setting.name in ("api_key", "endpoint_options")
            adapter, server = (there, {"endpoint": "http://localhost:2"}) if is_for_servers else (here, {})
            before = row.read(adapter)
            name, value = row.renamed.get(setting.name, setting.name), self.VALUES.get(setting.name)
            given: dict[str, Any] = {"model_name": "m", **server, setting.name: value}
            if setting.name == "transformers_kwargs":
                name, value = row.keywords, {"model_kwargs": {"attn_implementation": "eager"}}
                given[setting.name] = TransformersKwargs.of(model={"attn_implementation": "eager"})
            elif setting.name in row.defaults:
                value = given[setting.name] = False
            changed = row.read(adapter.model_copy(update={name: value}))
            expected = getattr(row.settings(**given), setting.name)
            assert getattr(changed, setting.name) == expected != getattr(before, setting.name), name
            assert changed.replace(**{setting.name: getattr(before, setting.name)}) == before, name

    def test_a_path_may_be_given_where_a_name_belongs(self, row: Row, folder: Path, tmp_path: Path) -> None:
        adapter = row.make(folder, cache_folder=tmp_path)
        assert (adapter.model_name, adapter.cache_folder) == (str(folder), str(tmp_path))
        if row.framework == "langchain":
            assert row.kind(model=folder).model_name == str(folder)
        else:
            assert row.kind(folder).model_name == str(folder)


class TestChangedLater:
    def test_nothing_is_made_again_while_nothing_changes(self, row: Row, folder: Path) -> None:
        adapter = row.make(folder, query_instruction="find: ")
        first = row.held(adapter)
        row.compute(adapter)
        adapter.query_instruction = "find: "
        adapter.batch_tokens = None  # its default, said by now
        row.compute(adapter)
        assert row.held(adapter) is first

    def test_a_setting_of_calls_makes_the_core_again_and_not_the_model(self, row: Row, folder: Path) -> None:
        adapter, changed = row.make(folder), row.make(folder, query_instruction="the lazy dog ")
        first, before = row.held(adapter), row.compute(adapter)
        copied = adapter.model_copy(update={"query_instruction": "the lazy dog "})
        assert row.compute(copied) == row.compute(changed) != before
        assert row.held(adapter) is first
        adapter.query_instruction = "the lazy dog "
        assert row.compute(adapter) == row.compute(changed)
        assert row.held(adapter) is not first
        assert row.held(adapter).backend is row.held(copied).backend is first.backend

    def test_a_setting_of_loading_loads_another_model(self, row: Row, folder: Path) -> None:
        adapter = row.make(folder)
        first, before = row.held(adapter), row.compute(adapter)
        adapter.engine = "torch"
        assert_close(row.compute(adapter), before)
        assert row.held(adapter).backend is not first.backend
        assert row.held(adapter).backend.engine.name == "torch"
        adapter.engine = "auto"
        assert row.held(adapter).backend is first.backend

    def test_another_model_is_loaded(self, row: Row, folder: Path, tmp_path: Path) -> None:
        adapter, another = row.make(folder), row.another(tmp_path / "another")
        before = row.compute(adapter)
        adapter.model_name = str(another)
        assert row.compute(adapter) == row.compute(row.make(another)) != before

    def test_a_key_put_into_the_keywords_counts(self, row: Row, folder: Path) -> None:
        adapter = row.make(folder)
        before = row.compute(adapter)
        getattr(adapter, row.keywords)["config_kwargs"] = {"layer_norm_eps": 0.5}
        assert row.compute(adapter) != before
        assert row.held(adapter).settings.transformers_kwargs.config == '{"layer_norm_eps": 0.5}'

    def test_a_wrong_value_is_refused_at_the_next_use(self, row: Row, folder: Path) -> None:
        adapter = row.make(folder)
        adapter.batch_size = -1
        for call in row.calls:
            with pytest.raises(SettingsError, match="batch_size=-1 must be a whole number of at least 1"):
                call.run(adapter)
            with pytest.raises(SettingsError, match="batch_size=-1 must be a whole number of at least 1"):
                asyncio.run(call.arun(adapter))


class TestSharing:
    def test_settings_of_calls_need_no_model_of_their_own(self, row: Row, folder: Path) -> None:
        backend = row.held(row.make(folder)).backend
        for further in (
            {"query_instruction": "find: "},
            {"max_length": 16, "on_truncation": "ignore"},
            {row.renamed.get("show_progress", "show_progress"): True},
            {"batch_tokens": 64, "batch_size": 1, "max_queued_texts": 9},
            {"token": SECRET},
            row.given,
        ):
            assert row.held(row.make(str(folder), **further)).backend is backend, further

    def test_the_core_class_joins(self, row: Row, folder: Path) -> None:
        assert row.core(folder).backend is row.held(row.make(folder)).backend

    @pytest.mark.parametrize("core", [BgeEncoder, BgeReranker, BgeM3Encoder])
    def test_the_classes_of_both_frameworks_join(self, core: type[Any], request: pytest.FixtureRequest) -> None:
        rows = [row for row in ROWS if row.core is core]
        adapters = [row.make(request.getfixturevalue(row.checkpoint)) for row in rows]
        assert {row.framework for row in rows} == {"langchain", "llama_index"}
        assert len({id(row.held(adapter).backend) for row, adapter in zip(rows, adapters, strict=True)}) == 1


def ways(row: Row) -> dict[str, Callable[[Any], Any]]:
    """Every way in which settings travel; not every class has each of them."""
    kind = row.kind
    found: dict[str, Callable[[Any], Any]] = {
        "pickle": lambda one: pickle.loads(pickle.dumps(one)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "json": lambda one: kind.model_validate_json(one.model_dump_json()),
        "json by alias": lambda one: kind.model_validate_json(one.model_dump_json(by_alias=True)),
        "keywords": lambda one: kind(**one.model_dump()),
    }
    if hasattr(kind, "from_dict"):
        found["from_dict"] = lambda one: kind.from_dict(one.to_dict())
        found["from_json"] = lambda one: kind.from_json(one.to_json())
    return found


class TestTravel:
    FULL: Mapping[str, Any] = {
        "device": "cpu",
        "max_length": 20,
        "query_instruction": "find: ",
        "on_truncation": "ignore",
        "batch_tokens": 256,
        "batch_size": 2,
        "max_queued_texts": 99,
    }

    @pytest.mark.parametrize("full", [False, True], ids=["default", "every kind of setting"])
    @pytest.mark.parametrize(
        ("row", "way"),
        [pytest.param(row, way, id=f"{row}-{way}") for row in ROWS for way in ways(row)],
    )
    def test_settings_survive(self, row: Row, folder: Path, way: str, full: bool) -> None:
        settings = {**self.FULL, **row.given, row.keywords: KEYWORDS} if full else {}
        adapter = row.make(folder, **settings)
        twin = ways(row)[way](adapter)
        assert type(twin) is row.kind
        assert twin.model_dump() == adapter.model_dump()
        assert row.read(twin) == row.read(adapter)
        assert row.compute(twin) == row.compute(adapter)
        assert row.held(twin).backend is row.held(adapter).backend

    def test_weights_stay_behind(self, row: Row, folder: Path) -> None:
        adapter = row.make(folder)
        row.compute(adapter)
        assert (folder / "model.safetensors").stat().st_size > 4 * BOUND
        assert all(len(saved) < BOUND for saved in saved_forms(adapter))
        assert len(pickle.dumps(row.held(adapter))) < BOUND


def saved_forms(adapter: Any) -> list[bytes]:  # noqa: ANN401
    """What may be stored of it."""
    texts = [adapter.model_dump_json(), adapter.model_dump_json(by_alias=True), str(adapter.model_dump())]
    if hasattr(adapter, "to_dict"):
        texts += [str(adapter.to_dict()), adapter.to_json()]
    if hasattr(adapter, "to_payload"):  # since llama-index-core 0.14.23
        texts.append(str(adapter.to_payload()))
    return [pickle.dumps(adapter), *(text.encode() for text in texts)]


def places(row: Row) -> Iterator[dict[str, Any]]:
    """Every place where a user may put a token."""
    yield {"token": SECRET}
    within: list[dict[str, Any]] = [
        {"token": SECRET},
        {"token": None, "use_auth_token": SECRET},
        {"model_kwargs": {"token": SECRET}},
        {"tokenizer_kwargs": {"use_auth_token": SECRET}},
        {"config_kwargs": {"token": SECRET}},
    ]
    for keywords in within:
        yield {row.keywords: keywords}
        if row.framework == "llama_index":
            yield keywords
    if row.core is BgeReranker:  # names of former times
        yield {row.keywords: {"automodel_args": {"token": SECRET}}}
        yield {row.keywords: {"tokenizer_args": {"use_auth_token": SECRET}}}


each_place = pytest.mark.parametrize(
    ("row", "given"), [pytest.param(row, given, id=f"{row}-{given}") for row in ROWS for given in places(row)]
)


class TestToken:
    @each_place
    def test_is_used_and_neither_shown_nor_saved(
        self,
        row: Row,
        folder: Path,
        given: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.DEBUG, "bge_integrations"), watched() as (events, spans):
            adapter = row.make(folder, **given)
            row.compute(adapter)
        held = row.held(adapter)
        assert held.settings.token == SECRET
        shown = [
            *(repr(adapter), str(adapter), repr(adapter.__dict__), repr(copy.deepcopy(adapter))),
            *(repr(held), repr(held.settings), caplog.text),
            *(str(spans), *(str(event.model_dump()) for event in events)),
        ]
        assert [text for text in shown if SECRET in text] == []
        assert SECRET.encode() not in b"".join(saved_forms(adapter)) + pickle.dumps(held)
        assert pickle.loads(pickle.dumps(adapter)).token is None

    @each_place
    def test_is_in_no_part_of_an_error(self, row: Row, given: dict[str, Any]) -> None:
        further = {**given.get(row.keywords, {}), "devise": 1}
        for fault in ({"unknown": 1}, {"precision": "float8"}, {"max_length": 0}, {row.keywords: further}):
            with pytest.raises((ValidationError, SettingsError)) as caught:
                row.make(NOWHERE, **{**given, **fault})
            assert SECRET not in everything_of(caught.value), fault
        for wrong, _ in row.wrong:
            with pytest.raises((ValidationError, SettingsError)) as caught:
                row.make(NOWHERE, **given, **wrong)
            assert SECRET not in everything_of(caught.value), wrong

    def test_is_in_no_part_of_the_error_about_saved_settings(self, row: Row) -> None:
        saved = json.dumps({"model_name": NOWHERE, row.keywords: {"token": SECRET, "devise": 1}})
        with pytest.raises((ValidationError, SettingsError), match="devise") as caught:
            row.kind.model_validate_json(saved)
        assert SECRET not in everything_of(caught.value)

    def test_put_in_later_is_neither_shown_nor_saved(self, row: Row, folder: Path) -> None:
        adapter = row.make(folder)
        further = getattr(adapter, row.keywords)
        further["token"] = SECRET
        further["model_kwargs"] = {"use_auth_token": SECRET, "attn_implementation": "eager"}
        for token in (SECRET, SecretStr(SECRET)):
            adapter.token = token
            assert SECRET not in repr(adapter) + str(adapter)
            assert SECRET.encode() not in b"".join(saved_forms(adapter))
        kept = {"model_kwargs": {"attn_implementation": "eager"}}
        assert adapter.model_dump()[row.keywords] == kept
        assert getattr(pickle.loads(pickle.dumps(adapter)), row.keywords) == kept


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"devise": "cpu"}, "devise"),
    ({"precision": "float8"}, "precision"),
    ({"engine": "warp"}, "engine"),
    ({"on_truncation": "cry"}, "on_truncation"),
    ({"max_length": 0}, "max_length=0 must be a whole number of at least 1"),
    ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
    ({"batch_tokens": 0}, "batch_tokens=0 must be a whole number of at least 1"),
    ({"threads": 0}, "threads=0 must be a whole number of at least 1"),
    ({"max_queued_texts": -1}, "max_queued_texts=-1 must be a whole number of at least 1"),
    ({"max_length": "many"}, "max_length"),
    ({"device": []}, r"device=\[\] names no device"),
    ({"query_instruction": 5}, "query_instruction"),
    ({"trust_remote_code": "perhaps"}, "trust_remote_code"),
)


class TestRefusals:
    """Nothing is looked for before settings are checked."""

    @pytest.mark.parametrize(
        ("row", "given", "message"),
        [
            pytest.param(row, given, message, id=f"{row}-{given}")
            for row in ROWS
            for given, message in (*WRONG, *row.wrong)
        ],
    )
    def test_name_the_setting(self, row: Row, given: dict[str, Any], message: str) -> None:
        with pytest.raises((ValidationError, SettingsError), match=message):
            row.make(NOWHERE, **given)

    def test_of_keys_list_those_that_are_known(self, row: Row) -> None:
        said = r"\['devise'\] is unknown; the known keys are .*device, "
        with pytest.raises((ValidationError, SettingsError), match=said):
            row.make(NOWHERE, **{row.keywords: {"devise": "cpu"}})
        if row.framework == "llama_index":
            with pytest.raises(SettingsError, match=r"devise='cpu' is unknown; the known arguments are .*device, "):
                row.make(NOWHERE, devise="cpu")

    def test_of_two_things_that_contradict_each_other_name_both(self, row: Row) -> None:
        with pytest.raises((ValidationError, SettingsError), match=r"revision='v1', but .* says 'v2'; say it once"):
            row.make(NOWHERE, revision="v1", **{row.keywords: {"revision": "v2"}})


class TestAsync:
    async def test_gives_the_same_off_the_event_loop(
        self, row: Row, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = row.make(folder)
        expected = row.compute(adapter)
        with monkeypatch.context() as patched:
            found = await run_off_the_loop(
                row.held(adapter).backend, patched, *(call.arun(adapter) for call in row.calls)
            )
        assert_close(numbers(found), expected)


class TestClosing:
    """No class closes by itself: what it holds does."""

    def test_use_afterwards_is_an_error(self, row: Row, folder: Path) -> None:
        adapter, other = row.make(folder), row.make(folder)
        expected = row.compute(adapter)
        row.held(adapter).close()
        said = f"{row.core.__name__} of .*{folder.name} was closed"
        for call in row.calls:
            with pytest.raises(ModelClosedError, match=said):
                call.run(adapter)
            with pytest.raises(ModelClosedError, match=said):
                asyncio.run(call.arun(adapter))
        assert row.compute(other) == expected
        assert row.compute(pickle.loads(pickle.dumps(adapter))) == expected


class TestTexts:
    BAD: tuple[tuple[object, type[InvalidInputError], str], ...] = (
        (None, InputTypeError, "is a NoneType, not a str: None"),
        (7, InputTypeError, "is an int, not a str: 7"),
        ("ab\ud83d", InputValueError, r"has a lone surrogate \('\\ud83d'\) at character 2"),
    )

    @pytest.mark.parametrize(("bad", "error", "message"), BAD, ids=["None", "int", "surrogate"])
    def test_that_are_none_are_named_with_their_position(
        self, row: Row, folder: Path, bad: object, error: type[InvalidInputError], message: str
    ) -> None:
        adapter = row.make(folder)
        for call in row.calls:
            said = rf"\w {call.position} {message}"
            with pytest.raises(error, match=said) as caught:
                call.run(adapter, bad)
            assert caught.value.index == call.position
            with pytest.raises(error, match=said) as caught:
                asyncio.run(call.arun(adapter, bad))
            assert caught.value.index == call.position
