"""An event loop goes on while texts are tokenised, computed and turned into lists: none of it is its thread's work."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from bge_integrations import BgeEncoder, langchain, llama_index, reranker
from bge_integrations.adapters import lists as vectors
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine
from bge_integrations.backend.guarantees.interrupts import Ticket
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.calls import embedding, inputs
from bge_integrations.calls.embedding import Vectors
from bge_integrations.calls.handle import ModelHandle
from bge_integrations.errors import TruncationError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.langchain.compressor import ScoringCompressor
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.llama_index.postprocessor import ScoringPostprocessor
from bge_integrations.m3 import encoder as m3
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3, make_reranker

MANY = [f"fox {number}" for number in range(2500)]
LONG = "fox " * 5000


def note_threads(monkeypatch: pytest.MonkeyPatch, seen: dict[str, set[int]], owner: Any, name: str) -> None:  # noqa: ANN401
    """Has a function note the threads that it runs in."""
    work: Callable[..., Any] = getattr(owner, name)

    def noting(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if name != "to_lists" or args[0].size > vectors._NUMBERS_AT_ONCE:
            seen.setdefault(name, set()).add(threading.get_ident())
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, noting)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[int]]]:
    """The threads that did each kind of work for calls; at the end, the loop's is none of them."""
    seen: dict[str, set[int]] = {}

    monkeypatch.setattr(vectors, "_NUMBERS_AT_ONCE", 1024)
    for owner, name in [
        (embedding, "slices_of_texts"),
        (TextTokenizer, "tokenize"),
        (OpenVinoEngine, "submit"),
        (Vectors, "add"),
        (vectors, "to_lists"),
    ]:
        note_threads(monkeypatch, seen, owner, name)
    yield seen
    for name, idents in seen.items():
        assert threading.get_ident() not in idents, name


_ALWAYS = {"slices_of_texts", "tokenize", "submit", "add"}


@pytest.mark.parametrize(
    "use",
    [
        lambda encoder: encoder.aencode_documents(MANY),
        lambda encoder: encoder.aencode_documents(text for text in MANY),
        lambda encoder: encoder.aencode_documents(text for text in ["fox"]),
        lambda encoder: encoder.aencode(iter(MANY)),
        lambda encoder: encoder.aencode_queries(MANY),
        lambda encoder: encoder.aencode_queries([LONG]),
    ],
    ids=["list", "generator", "short generator", "iterator", "queries", "long query"],
)
async def test_encoding(
    bge_small_en: Path, threads: dict[str, set[int]], use: Callable[[BgeEncoder], Awaitable[Any]]
) -> None:
    encoder = BgeEncoder(bge_small_en, device="cpu", engine="openvino", on_truncation="ignore")
    threads.clear()  # what loading does, it does where it is asked for
    await use(encoder)
    assert set(threads) == _ALWAYS


async def test_looking_for_texts_that_are_too_long(bge_small_en: Path, threads: dict[str, set[int]]) -> None:
    encoder = BgeEncoder(bge_small_en, device="cpu", engine="openvino", on_truncation="error")
    threads.clear()
    with pytest.raises(TruncationError):
        await encoder.aencode_documents([*MANY, LONG])
    assert set(threads) == {"slices_of_texts", "tokenize"}
    await encoder.aencode_documents(MANY)
    assert set(threads) == _ALWAYS


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
async def test_the_adapters(bge_small_en: Path, threads: dict[str, set[int]], framework: str) -> None:
    settings: dict[str, Any] = {"device": "cpu", "engine": "openvino", "on_truncation": "ignore"}
    if framework == "langchain":
        langchain = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **settings)
        threads.clear()
        await langchain.aembed_documents(MANY)
        await langchain.aembed_query(LONG)
    else:
        llama_index = HuggingFaceBgeEmbedding(str(bge_small_en), **settings)
        threads.clear()
        await llama_index.aget_text_embedding_batch(MANY)
        await llama_index.aget_query_embedding(LONG)
        await llama_index.aget_text_embedding(LONG)
    assert set(threads) == {*_ALWAYS, "to_lists"}


@pytest.mark.parametrize("use", ["langchain query", "llama_index query", "llama_index batch"])
async def test_long_texts_are_checked_elsewhere(bge_small_en: Path, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    seen: dict[str, set[int]] = {}
    embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **_SETTINGS)
    nodes = HuggingFaceBgeEmbedding(str(bge_small_en), **_SETTINGS)
    note_threads(monkeypatch, seen, inputs, "lone_surrogate")
    if use == "langchain query":
        await embeddings.aembed_query(LONG)
    elif use == "llama_index query":
        await nodes.aget_query_embedding(LONG)
    else:
        await nodes.aget_text_embedding_batch([LONG])
    assert seen["lone_surrogate"]
    assert threading.get_ident() not in seen["lone_surrogate"]


async def test_pairs_are_checked_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}
    note = partial(note_threads, monkeypatch, seen)
    note(reranker, "check_texts")
    for name in ("check_texts", "slices_of_pairs", "mixed", "mixed_pairs"):
        note(m3, name)
    passages = [f"fox {number}" for number in range(100)]
    pairs = [("fox", passage) for passage in passages]
    for model in (
        reranker.BgeReranker(make_reranker(tmp_path / "ours"), device="cpu"),
        m3.BgeM3Encoder(make_m3(tmp_path / "bge-m3"), device="cpu"),
    ):
        await model.ascore("fox", passages)
        await model.ascore("fox", iter(passages))
        await model.ascore_pairs(pairs)
    assert set(seen) == {"check_texts", "slices_of_pairs", "mixed", "mixed_pairs"}
    assert threading.get_ident() not in set().union(*seen.values())


_SETTINGS: dict[str, Any] = {"device": "cpu", "on_truncation": "ignore"}
_PASSAGES = [f"fox {number}" for number in range(300)]
_DOCUMENTS = [Document(page_content=passage) for passage in _PASSAGES]
_NODES = [NodeWithScore(node=TextNode(text=passage)) for passage in _PASSAGES]

_USES: dict[str, tuple[str, Callable[[str], Any], Callable[[Any], Awaitable[Any]]]] = {
    "encoder": ("vectors", lambda name: BgeEncoder(name, **_SETTINGS), lambda it: it.aencode_queries(["fox"])),
    "reranker": (
        "scores",
        lambda name: reranker.BgeReranker(name, **_SETTINGS),
        lambda it: it.ascore("fox", _PASSAGES),
    ),
    "m3": ("m3", lambda name: m3.BgeM3Encoder(name, **_SETTINGS), lambda it: it.ascore("fox", _PASSAGES)),
    "langchain query": (
        "vectors",
        lambda name: HuggingFaceBgeEmbeddings(model_name=name, **_SETTINGS),
        lambda it: it.aembed_query("fox"),
    ),
    "langchain documents": (
        "vectors",
        lambda name: HuggingFaceBgeEmbeddings(model_name=name, **_SETTINGS),
        lambda it: it.aembed_documents(_PASSAGES),
    ),
    "langchain reranker": (
        "scores",
        lambda name: langchain.BgeReranker(model_name=name, **_SETTINGS),
        lambda it: it.acompress_documents(_DOCUMENTS, "fox"),
    ),
    "langchain m3 reranker": (
        "m3",
        lambda name: langchain.BgeM3Reranker(model_name=name, **_SETTINGS),
        lambda it: it.acompress_documents(_DOCUMENTS, "fox"),
    ),
    "langchain sparse": (
        "m3",
        lambda name: langchain.BgeSparseEmbeddings(model_name=name, **_SETTINGS),
        lambda it: it.aembed_query("fox"),
    ),
    "llama_index query": (
        "vectors",
        lambda name: HuggingFaceBgeEmbedding(name, **_SETTINGS),
        lambda it: it.aget_query_embedding("fox"),
    ),
    "llama_index cached query": (
        "vectors",
        lambda name: HuggingFaceBgeEmbedding(name, embeddings_cache=SimpleKVStore(), **_SETTINGS),
        lambda it: it.aget_query_embedding("fox"),
    ),
    "llama_index texts": (
        "vectors",
        lambda name: HuggingFaceBgeEmbedding(name, **_SETTINGS),
        lambda it: it.aget_text_embedding_batch(_PASSAGES),
    ),
    "llama_index reranker": (
        "scores",
        lambda name: llama_index.BgeRerank(model_name=name, **_SETTINGS),
        lambda it: it.apostprocess_nodes(_NODES, query_str="fox"),
    ),
    "llama_index m3 reranker": (
        "m3",
        lambda name: llama_index.BgeM3Rerank(model_name=name, **_SETTINGS),
        lambda it: it.apostprocess_nodes(_NODES, query_str="fox"),
    ),
    "llama_index sparse": (
        "m3",
        lambda name: llama_index.BgeSparseEmbedding(model_name=name, **_SETTINGS),
        lambda it: it.aget_query_embedding("fox"),
    ),
}


def _changed(it: Any) -> Any:  # noqa: ANN401
    """Another one, which needs another model: what it asks for is not loaded yet."""
    if isinstance(it, ModelHandle):
        return type(it).from_settings(it.settings.replace(threads=1), load=False)
    it.threads = 1
    return it


_WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "unpickled": lambda it: pickle.loads(pickle.dumps(it)),
    "changed": _changed,
}

_noted: list[str] = []
_watched: int | None = None  # the thread whose files are watched


def _note_files(event: str, arguments: tuple[Any, ...]) -> None:
    if threading.get_ident() == _watched and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "import"):
        _noted.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module")
def _audited() -> None:
    sys.addaudithook(_note_files)  # for good: there is no way to take it away again


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("use", _USES)
@pytest.mark.usefixtures("_audited")
async def test_what_has_to_be_loaded_or_checked_is_so_elsewhere(
    bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path, monkeypatch: pytest.MonkeyPatch, use: str, way: str
) -> None:
    global _watched
    purpose, make, compute = _USES[use]
    folder = {"vectors": bge_small_en, "scores": bge_reranker_base, "m3": bge_m3}[purpose]
    made = make(str(folder))
    await compute(made)  # what is imported at the first use
    given = _WAYS[way](made)

    wait = Ticket.wait

    def waiting(ticket: Ticket[Any]) -> Any:  # noqa: ANN401
        if threading.get_ident() == _watched:
            _noted.append("waiting for another thread")
        return wait(ticket)

    monkeypatch.setattr(Ticket, "wait", waiting)
    _noted.clear()
    _watched = threading.get_ident()
    try:
        await compute(given)
    finally:
        _watched = None
    assert not _noted


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
async def test_many_passages_are_read_and_copied_elsewhere(
    bge_reranker_base: Path, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    seen: dict[str, set[int]] = {}
    note = partial(note_threads, monkeypatch, seen)
    if framework == "langchain":
        note(ScoringCompressor, "_best")
        compressor = langchain.BgeReranker(model_name=str(bge_reranker_base), **_SETTINGS)
        assert len(await compressor.acompress_documents(_DOCUMENTS, "fox")) == len(_DOCUMENTS)
    else:
        note(ScoringPostprocessor, "_best")
        note(ScoringPostprocessor, "_texts")
        rerank = llama_index.BgeRerank(model_name=str(bge_reranker_base), top_n=250, **_SETTINGS)
        assert len(await rerank.apostprocess_nodes(_NODES, query_str="fox")) == 250
    assert seen
    assert threading.get_ident() not in set().union(*seen.values())


async def test_letting_go_of_a_model_does_not_wait_for_its_threads(tmp_path: Path) -> None:
    encoder = BgeEncoder(make_checkpoint(tmp_path / "bge-small-en"), device="cpu")
    await encoder.aencode_queries(["fox"])
    scheduler, may_end = encoder.backend.scheduler, threading.Event()
    close = scheduler.close

    def closing() -> None:
        assert may_end.wait(60)
        close()

    scheduler.close = closing  # type: ignore[method-assign]
    encoder.close()  # would wait for ever
    may_end.set()
    while not scheduler._closed:
        await asyncio.sleep(0.001)
