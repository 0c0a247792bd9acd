"""An event loop goes on while texts are tokenised, computed and turned into lists: none of it is its thread's work."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_integrations import BgeEncoder, reranker, vectors
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine
from bge_integrations.backend.tokenization import TextTokenizer
from bge_integrations.encoding import EncodingCall
from bge_integrations.errors import TruncationError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.m3 import encoder as m3
from tests.checkpoints_of_pairs import make_m3, make_reranker

MANY = [f"fox {number}" for number in range(2500)]
LONG = "fox " * 5000


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[int]]]:
    """The threads that did each kind of work for calls; at the end, the loop's is none of them."""
    seen: dict[str, set[int]] = {}

    def note(owner: Any, name: str) -> None:  # noqa: ANN401
        work: Callable[..., Any] = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if name != "to_lists" or args[0].size > vectors._NUMBERS_AT_ONCE:
                seen.setdefault(name, set()).add(threading.get_ident())
            return work(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    monkeypatch.setattr(vectors, "_NUMBERS_AT_ONCE", 1024)
    for owner, name in [
        (EncodingCall, "_slices"),
        (TextTokenizer, "tokenize"),
        (OpenVinoEngine, "submit"),
        (EncodingCall, "_keep"),
        (vectors, "to_lists"),
    ]:
        note(owner, name)
    yield seen
    for name, idents in seen.items():
        assert threading.get_ident() not in idents, name


_ALWAYS = {"_slices", "tokenize", "submit", "_keep"}


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
    assert set(threads) == {"_slices", "tokenize"}
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


async def test_pairs_are_checked_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def note(module: Any, name: str) -> None:  # noqa: ANN401
        work: Callable[..., Any] = getattr(module, name)

        def noting(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            seen.setdefault(name, set()).add(threading.get_ident())
            return work(*args, **kwargs)

        monkeypatch.setattr(module, name, noting)

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
