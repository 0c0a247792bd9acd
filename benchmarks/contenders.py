"""Who takes part: the adapters and runtimes of today as they come, and this package's, all on the same weights.

Nobody puts an instruction before queries, since not all can, so that all compute the same. Batches are each one's own
default (32 texts; llama-index hands over 10 at a time) but for FlagEmbedding and fastembed: their default of 256 texts
pads so much on a processor (FlagEmbedding sorts by length and still took six times as long) that 32 is used.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.entrants import BATCH, Loaded, Place

BASELINE = "langchain-huggingface"
REFERENCE = "sentence-transformers"
"""Whose vectors are the right ones."""


@dataclass(frozen=True)
class Contender:
    """One way to embed.

    Attributes:
        name: As on the command line and in tables.
        precision: How it computes.
        how: Its settings, in words.
        load: Imports what it needs and loads the model.
    """

    name: str
    precision: str
    how: str
    load: Callable[[Place], Loaded]

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's."""
        return self.name.startswith("bge-")

    @property
    def keeps_files(self) -> bool:
        """Whether its first start makes something that later ones find on disk."""
        return self.is_ours or self.name in ("fastembed", "onnxruntime")


def _sentence_transformers(place: Place) -> Loaded:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(place.model), device="cpu")
    return Loaded(partial(model.encode, batch_size=BATCH), model.encode)


def _langchain(place: Place) -> Loaded:
    from langchain_huggingface import HuggingFaceEmbeddings

    embeddings = HuggingFaceEmbeddings(model_name=str(place.model), model_kwargs={"device": "cpu"})
    return _of_langchain(embeddings)


def _llama_index(place: Place) -> Loaded:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    embedding = HuggingFaceEmbedding(str(place.model), device="cpu")
    return _of_llama_index(embedding)


def _flag_embedding(place: Place) -> Loaded:
    flag_embedding = importlib.import_module("FlagEmbedding")
    model = flag_embedding.FlagModel(str(place.model), use_fp16=False, devices="cpu", batch_size=BATCH)
    return Loaded(model.encode_corpus, lambda text: model.encode_queries([text])[0])


def _fastembed(place: Place) -> Loaded:
    from benchmarks.onnx_models import load_fastembed

    return load_fastembed(place)


def _onnxruntime(place: Place) -> Loaded:
    from benchmarks.onnx_models import load_onnxruntime

    return load_onnxruntime(place)


def _our_langchain(engine: str, precision: str, place: Place) -> Loaded:
    from bge_integrations.langchain import HuggingFaceBgeEmbeddings

    settings: dict[str, Any] = {"engine": engine, "precision": precision, "device": "cpu"}
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=str(place.model), query_instruction="", on_truncation="ignore", **settings
    )
    return _of_langchain(embeddings)


def _our_llama_index(engine: str, precision: str, place: Place) -> Loaded:
    from bge_integrations.llama_index import HuggingFaceBgeEmbedding

    settings: dict[str, Any] = {"engine": engine, "precision": precision, "device": "cpu"}
    embedding = HuggingFaceBgeEmbedding(str(place.model), query_instruction="", on_truncation="ignore", **settings)
    return _of_llama_index(embedding)


def _of_langchain(embeddings: Any) -> Loaded:  # noqa: ANN401 - the framework may be missing here
    return Loaded(
        embeddings.embed_documents, embeddings.embed_query, embeddings.aembed_documents, embeddings.aembed_query
    )


def _of_llama_index(embedding: Any) -> Loaded:  # noqa: ANN401 - the framework may be missing here
    return Loaded(
        embedding.get_text_embedding_batch,
        embedding.get_query_embedding,
        embedding.aget_text_embedding_batch,
        embedding.aget_query_embedding,
    )


def _ours(engine: str, precision: str) -> Contender:
    how = f"LangChain adapter, engine={engine!r}, precision={precision!r}"
    return Contender(f"bge-{engine}-{precision}", precision, how, partial(_our_langchain, engine, precision))


CONTENDERS = (
    Contender(BASELINE, "float32", "HuggingFaceEmbeddings as it comes", _langchain),
    _ours("openvino", "float32"),
    _ours("openvino", "bfloat16"),
    _ours("openvino", "int8"),
    _ours("torch", "float32"),
    _ours("torch", "bfloat16"),
    _ours("sentence-transformers", "float32"),
    Contender(
        "bge-llama-index-openvino-float32",
        "float32",
        "LlamaIndex adapter, engine='openvino', precision='float32'",
        partial(_our_llama_index, "openvino", "float32"),
    ),
    Contender("llama-index-huggingface", "float32", "HuggingFaceEmbedding as it comes", _llama_index),
    Contender(REFERENCE, "float32", "SentenceTransformer.encode as it comes, batches of 32", _sentence_transformers),
    Contender("fastembed", "float32", "custom model, fused ONNX graph, batches of 32 in the order given", _fastembed),
    Contender("onnxruntime", "float32", "fused ONNX graph, batches of 32 sorted by tokens", _onnxruntime),
    Contender("FlagEmbedding", "float32", "FlagModel, batches of 32 instead of its 256", _flag_embedding),
)
"""Those that matter most come first, should memory not suffice for all."""


def choose(patterns: Sequence[str]) -> list[Contender]:
    """Returns the contenders whose names match one of the patterns, in the order of `CONTENDERS`.

    Args:
        patterns: Names, or shell-like patterns such as `bge-*`.

    Raises:
        ValueError: A pattern that matches nobody.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatch(contender.name, pattern) for contender in CONTENDERS):
            known = ", ".join(contender.name for contender in CONTENDERS)
            raise ValueError(f"no contender is called {pattern!r}; there are {known}")
    return [
        contender for contender in CONTENDERS if any(fnmatch.fnmatch(contender.name, pattern) for pattern in patterns)
    ]


def by_name(name: str) -> Contender:
    """Returns the contender of a name."""
    return next(contender for contender in CONTENDERS if contender.name == name)
