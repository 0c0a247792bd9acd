"""Who takes part: the adapters and runtimes of today as they come, and this package's, all on the same weights.

Nobody puts an instruction before queries, since not all can, so that all compute the same. Batches are each one's own
default (32 texts; llama-index hands over 10 at a time) but for FlagEmbedding and fastembed: their default of 256 texts
pads so much on a processor (FlagEmbedding sorts by length and still took six times as long) that 32 is used. On a GPU
others also take part in float16 and with batches of 256, which suit it best.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.entrants import BATCH, Loaded, Place

BASELINE = "langchain-huggingface"
REFERENCE = "sentence-transformers"
"""Whose vectors are the right ones."""

_PACKAGES = {
    "sentence-transformers-onnx": "optimum-onnx",
    "sentence-transformers-openvino": "optimum-intel",
    "embed-anything": "embed-anything",
}
"""What contenders need that no environment with this package's newest dependencies has, by how their names begin."""


@dataclass(frozen=True)
class Contender:
    """One way to embed.

    Attributes:
        name: As on the command line and in tables.
        precision: How it computes.
        how: Its settings, in words.
        load: Imports what it needs and loads the model.
        devices: The kinds of device on which it takes part.
        makes_files: Whether its first start makes something that later ones find on disk, as ours do.
        needs: A distribution that not every environment of these benchmarks can have.
        prepare: Makes what it loads, where that needs the packages of this environment.
        python: The other Python that it runs in; None is this one.
    """

    name: str
    precision: str
    how: str
    load: Callable[[Place], Loaded]
    devices: tuple[str, ...] = ("cpu",)
    makes_files: bool = False
    needs: str = ""
    prepare: Callable[[Place], object] | None = None
    python: Path | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's."""
        return self.name.startswith("bge-")

    @property
    def keeps_files(self) -> bool:
        """Whether its first start makes something that later ones find on disk."""
        return self.is_ours or self.makes_files


def _sentence_transformers(place: Place, *, precision: str = "float32", batch: int = BATCH) -> Loaded:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(place.model), device=place.device, **_in_precision(precision))
    return Loaded(partial(model.encode, batch_size=batch), model.encode)


def _langchain(place: Place, *, precision: str = "float32", batch: int = BATCH) -> Loaded:
    from langchain_huggingface import HuggingFaceEmbeddings

    embeddings = HuggingFaceEmbeddings(
        model_name=str(place.model),
        model_kwargs={"device": place.device, **_in_precision(precision)},
        encode_kwargs={"batch_size": batch},
    )
    return _of_langchain(embeddings)


def _llama_index(place: Place, *, precision: str = "float32", batch: int = 10) -> Loaded:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    embedding = HuggingFaceEmbedding(
        str(place.model), device=place.device, embed_batch_size=batch, **_in_precision(precision)
    )
    return _of_llama_index(embedding)


def _in_precision(precision: str) -> dict[str, Any]:
    """Returns the keywords of `SentenceTransformer`, which both adapters pass on to it; none for float32."""
    import torch

    return {} if precision == "float32" else {"model_kwargs": {"dtype": getattr(torch, precision)}}


def _flag_embedding(place: Place, *, precision: str = "float32", batch: int = BATCH) -> Loaded:
    flag_embedding = importlib.import_module("FlagEmbedding")
    model = flag_embedding.FlagModel(
        str(place.model), use_fp16=precision == "float16", devices=place.device, batch_size=batch
    )
    return Loaded(model.encode_corpus, lambda text: model.encode_queries([text])[0])


def _in(module: str, function: str, *arguments: str) -> Callable[[Place], Any]:
    """Returns a function of a module that is imported when it is called."""
    return lambda place: getattr(importlib.import_module(f"benchmarks.{module}"), function)(*arguments, place)


def _onnx(library: str, precision: str, how: str) -> Contender:
    name = library if precision == "float32" else f"{library}-{precision}"
    return Contender(name, precision, how, _in("onnx_models", f"load_{library}", precision), makes_files=True)


def _peer(
    name: str,
    precision: str,
    how: str,
    load: Callable[[Place], Loaded],
    prepare: Callable[[Place], object] | None = None,
) -> Contender:
    needs = next(package for library, package in _PACKAGES.items() if name.startswith(library))
    return Contender(name, precision, how, load, makes_files=True, needs=needs, prepare=prepare)


def _our_langchain(engine: str, precision: str, place: Place) -> Loaded:
    from bge_integrations.langchain import HuggingFaceBgeEmbeddings

    settings: dict[str, Any] = {"engine": engine, "precision": precision, "device": place.device}
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=str(place.model), query_instruction="", on_truncation="ignore", **settings
    )
    return _of_langchain(embeddings)


def _our_llama_index(engine: str, precision: str, place: Place) -> Loaded:
    from bge_integrations.llama_index import HuggingFaceBgeEmbedding

    settings: dict[str, Any] = {"engine": engine, "precision": precision, "device": place.device}
    embedding = HuggingFaceBgeEmbedding(str(place.model), query_instruction="", on_truncation="ignore", **settings)
    return _of_llama_index(embedding)


def _of_langchain(embeddings: Any) -> Loaded:  # noqa: ANN401 - the framework may be missing here
    return Loaded(
        embeddings.embed_documents,
        embeddings.embed_query,
        embeddings.aembed_documents,
        embeddings.aembed_query,
        getattr(embeddings, "encoder", None),
    )


def _of_llama_index(embedding: Any) -> Loaded:  # noqa: ANN401 - the framework may be missing here
    return Loaded(
        embedding.get_text_embedding_batch,
        embedding.get_query_embedding,
        embedding.aget_text_embedding_batch,
        embedding.aget_query_embedding,
        getattr(embedding, "encoder", None),
    )


_GPU = ("cuda",)
_ANYWHERE = ("cpu", "cuda")
_GPU_BATCH = 256


def _ours(engine: str, precision: str, devices: tuple[str, ...] = ("cpu",)) -> Contender:
    how = f"LangChain adapter, engine={engine!r}, precision={precision!r}"
    return Contender(f"bge-{engine}-{precision}", precision, how, partial(_our_langchain, engine, precision), devices)


def _our_other(engine: str, precision: str, devices: tuple[str, ...]) -> Contender:
    how = f"LlamaIndex adapter, engine={engine!r}, precision={precision!r}"
    load = partial(_our_llama_index, engine, precision)
    return Contender(f"bge-llama-index-{engine}-{precision}", precision, how, load, devices)


def _in_half(name: str, batch: int, load: Callable[..., Loaded]) -> Contender:
    how = f"the same in float16, batches of {batch}"
    return Contender(f"{name}-float16-{batch}", "float16", how, partial(load, precision="float16", batch=batch), _GPU)


CONTENDERS = (
    Contender(BASELINE, "float32", "HuggingFaceEmbeddings as it comes", _langchain, _ANYWHERE),
    _in_half(BASELINE, _GPU_BATCH, _langchain),
    _ours("openvino", "float32"),
    _ours("openvino", "bfloat16"),
    _ours("openvino", "int8"),
    _ours("torch", "float32", _ANYWHERE),
    _ours("torch", "bfloat16", _ANYWHERE),
    _ours("torch", "float16", _GPU),
    _ours("sentence-transformers", "float32"),
    _our_other("openvino", "float32", ("cpu",)),
    _our_other("torch", "float16", _GPU),
    Contender("llama-index-huggingface", "float32", "HuggingFaceEmbedding as it comes", _llama_index, _ANYWHERE),
    _in_half("llama-index-huggingface", _GPU_BATCH, _llama_index),
    Contender(
        *(REFERENCE, "float32", "SentenceTransformer.encode as it comes, batches of 32"),
        _sentence_transformers,
        _ANYWHERE,
    ),
    _in_half(REFERENCE, BATCH, _sentence_transformers),
    _in_half(REFERENCE, _GPU_BATCH, _sentence_transformers),
    _onnx("fastembed", "float32", "custom model, fused ONNX graph, batches of 32 in the order given"),
    _onnx("fastembed", "float16", "the same with a graph as its own of BGE v1.5 are"),
    _onnx("fastembed", "int8", "the same with a graph quantised as its own script does"),
    _onnx("onnxruntime", "float32", "fused ONNX graph, batches of 32 sorted by tokens"),
    _onnx("onnxruntime", "int8", "the same with the quantised graph"),
    Contender("FlagEmbedding", "float32", "FlagModel, batches of 32 instead of its 256", _flag_embedding),
    _in_half("FlagEmbedding", _GPU_BATCH, _flag_embedding),
    _peer(
        "sentence-transformers-onnx",
        "float32",
        "backend='onnx' as it comes, batches of 32",
        _in("peers", "load_onnx", ""),
    ),
    _peer(
        "sentence-transformers-onnx-int8",
        "int8",
        "the same, quantised by its own function for this processor",
        _in("peers", "load_onnx", "int8"),
    ),
    _peer(
        "sentence-transformers-openvino",
        "bfloat16",
        "backend='openvino' as it comes: bfloat16 where the processor has it; batches of 32",
        _in("peers", "load_openvino", ""),
    ),
    _peer(
        "sentence-transformers-openvino-float32",
        "float32",
        "the same, float32 asked for",
        _in("peers", "load_openvino", "float32"),
    ),
    _peer(
        "sentence-transformers-openvino-int8",
        "int8",
        "the same, quantised by its own function with 300 texts",
        _in("peers", "load_openvino", "int8"),
        _in("peers", "calibration"),
    ),
    _peer("embed-anything", "float32", "candle, batches of 32 in the order given", _in("peers", "load_embed_anything")),
    _peer(
        "embed-anything-onnx",
        "float32",
        "fused ONNX graph, batches of 32 in the order given",
        _in("peers", "load_embed_anything_onnx"),
        _in("onnx_models", "exported"),
    ),
)
"""Those that matter most come first, should memory not suffice for all."""


def choose(patterns: Sequence[str], kind: str = "cpu", among: Sequence[Contender] = CONTENDERS) -> list[Contender]:
    """Returns the contenders whose names match one of the patterns, in their order.

    Args:
        patterns: Names, or shell-like patterns such as `bge-*`.
        kind: The kind of device on which they take part: "cpu" or "cuda".
        among: All that there are.

    Raises:
        ValueError: A pattern that matches nobody there.
    """
    there = [contender for contender in among if kind in contender.devices]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(contender.name, pattern) for contender in there):
            known = ", ".join(contender.name for contender in there)
            raise ValueError(f"no contender is called {pattern!r} on {kind}; there are {known}")
    return [contender for contender in there if any(fnmatch.fnmatch(contender.name, pattern) for pattern in patterns)]


def by_name(name: str) -> Contender:
    """Returns the contender of a name."""
    return next(contender for contender in CONTENDERS if contender.name == name)
