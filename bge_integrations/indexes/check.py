"""Checks whether a model fits an index: by the recorded fingerprint, and by documents that are embedded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.pooling import cosines
from bge_integrations.encoder import BgeEncoder, silent_encoder
from bge_integrations.errors import FingerprintError, IndexMismatchError
from bge_integrations.fingerprint import LEAST_COSINE, PROBES, Comparison, Fingerprint, lengths_differ, unlike
from bge_integrations.indexes.index import Document, Index

__all__ = ["DOCUMENTS", "Model", "Report", "check", "guarded"]

logger = get_logger(__name__)

DOCUMENTS = 32
"""Documents that are embedded again where an index has no fingerprint."""

_BEHIND_A_CACHE = "underlying_embeddings"
"""Attribute of LangChain's `CacheBackedEmbeddings`. A cache may hold vectors of texts, also wrong ones."""

_NAMES = ("model_name", "model", "repo_id")
"""Attributes under which other embeddings keep the model's name."""


@dataclass(frozen=True)
class Model:
    """What a check needs of a model.

    Attributes:
        fingerprint: Returns its fingerprint.
        embed: Function from texts to document vectors, shape [texts, dimension]. Long texts are cut in silence.
        encoder: The encoder of this package, if it is one.
    """

    fingerprint: Callable[[], Fingerprint]
    embed: Callable[[list[str]], NDArray[np.floating[Any]]]
    encoder: BgeEncoder | None = None

    @classmethod
    def of(cls, embeddings: object) -> Model:
        """Returns the model behind an encoder, an adapter of this package, another framework's embeddings, or a cache.

        Raises:
            FingerprintError: It is none of them.
        """
        seen = embeddings
        while (behind := getattr(seen, _BEHIND_A_CACHE, None)) is not None:
            seen = behind
        encoder = seen if isinstance(seen, BgeEncoder) else getattr(seen, "encoder", None)
        if isinstance(encoder, BgeEncoder):
            return cls(encoder.fingerprint, silent_encoder(encoder).encode_documents, encoder)
        embed = getattr(seen, "embed_documents", None) or getattr(seen, "get_text_embedding_batch", None)
        if embed is None:
            raise FingerprintError(
                f"{type(embeddings).__name__} has no way to embed documents; give an encoder, LangChain's Embeddings "
                "or LlamaIndex's BaseEmbedding."
            )

        def vectors(texts: list[str]) -> NDArray[np.floating[Any]]:
            return np.asarray(embed(texts), dtype=np.float32)

        def probed() -> Fingerprint:
            names = (getattr(seen, name, None) for name in _NAMES)
            name = next((name for name in names if isinstance(name, str)), type(seen).__name__)
            return Fingerprint.of_vectors(vectors(list(PROBES)), model=name)

        return cls(getattr(seen, "fingerprint", probed), vectors)


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        index: What the index is, in words.
        state: `"equal"`, `"compatible"` or `"different"`, as in `Comparison`; `"empty"` for an index without a
            fingerprint and without documents.
        differences: What differs, one sentence each.
        recorded: The fingerprint that the index had; `None` without one.
        model: The model's fingerprint.
        least_cosine: Least cosine of the probes and of the documents; `None` if there was nothing to compare.
        documents: Number of documents that were embedded again.
    """

    index: str
    state: Literal["equal", "compatible", "different", "empty"]
    differences: tuple[str, ...]
    recorded: Fingerprint | None
    model: Fingerprint
    least_cosine: float | None = None
    documents: int = 0

    def require(self) -> None:
        """Raises `IndexMismatchError` if the index is different."""
        if self.state == "different":
            made = f" was made with {self.recorded.model!r}, and" if self.recorded else ""
            raise IndexMismatchError(
                f"{self.index}{made} does not fit the model in use, {self.model.model!r}: "
                f"{'; '.join(self.differences)}. Use the model and the settings that made the index, or empty it, "
                "embed its documents again, and record the model with overwrite=True.",
                self.differences,
            )


def check(
    index: Index,
    model: Model,
    *,
    least_cosine: float = LEAST_COSINE,
    documents: int = DOCUMENTS,
    always_documents: bool = False,
) -> Report:
    """Compares an index with a model. It changes nothing.

    Args:
        index: The index.
        model: The model.
        least_cosine: Least cosine of vectors that count as the same.
        documents: Number of documents to embed again if the index has no fingerprint.
        always_documents: Whether to do this also if it has one.

    Raises:
        FingerprintError: The fingerprint is damaged, or the index has neither a fingerprint nor documents that can be
            read with their texts.
    """
    recorded = _recorded(index)
    now = model.fingerprint()
    found = recorded.compare(now, least_cosine=least_cosine) if recorded else None
    is_wanted = documents > 0 and (found is None or always_documents)
    if not is_wanted or not index.count():
        return _report(index, now, recorded, found, [], None)
    sample = index.sample(documents)
    if not sample:
        if found is None:
            raise FingerprintError(
                f"{index.name} has no fingerprint, and no text of its documents can be read with its vector. If you "
                "know that this model made it, record the model with overwrite=True."
            )
        return _report(index, now, recorded, found, [], None)
    differences, least = _compared(sample, model, least_cosine, rescales=index.rescales)
    return _report(index, now, recorded, found, differences, least, len(sample))


def guarded(
    index: Index, model: Model, *, least_cosine: float = LEAST_COSINE, overwrite: bool = False
) -> Report | None:
    """Checks an index and records the model's fingerprint if it has none.

    Args:
        index: The index.
        model: The model.
        least_cosine: As for `check`.
        overwrite: Record the model without a check.

    Returns:
        The report; `None` with `overwrite`.

    Raises:
        IndexMismatchError: The model does not fit the index.
        FingerprintError: As `check`, or the store can't keep a fingerprint.
    """
    if overwrite:
        index.write(model.fingerprint().to_json())
        return None
    report = check(index, model, least_cosine=least_cosine)
    report.require()
    if report.recorded is None and index.keeps_records:
        index.write(report.model.to_json())
        if report.documents:
            logger.info(
                "%s had no fingerprint: %d of its documents were embedded again and fit %s (least cosine %.5f), which "
                "is recorded now",
                index.name,
                report.documents,
                report.model.model,
                report.least_cosine,
            )
    return report


def _recorded(index: Index) -> Fingerprint | None:
    text = index.read()
    if text is None:
        return None
    try:
        return Fingerprint.from_json(text)
    except FingerprintError as error:
        raise FingerprintError(f"{index.name}: {error}") from error


def _report(
    index: Index,
    now: Fingerprint,
    recorded: Fingerprint | None,
    found: Comparison | None,
    differences: Sequence[str],
    least: float | None,
    documents: int = 0,
) -> Report:
    cosines = [one for one in (least, found.least_cosine if found else None) if one is not None]
    state: Literal["equal", "compatible", "different", "empty"]
    if differences or (found is not None and found.state == "different"):
        state = "different"
    elif found is not None:
        state = found.state
    else:
        state = "compatible" if documents else "empty"
    return Report(
        index=index.name,
        state=state,
        differences=(*(found.differences if found else ()), *differences),
        recorded=recorded,
        model=now,
        least_cosine=min(cosines, default=None),
        documents=documents,
    )


def _compared(
    sample: Sequence[Document], model: Model, least: float, *, rescales: bool
) -> tuple[list[str], float | None]:
    """Returns what differs between stored vectors and those of the model, and the least cosine."""
    texts = [document.text for document in sample]
    now = np.asarray(model.embed(texts), dtype=np.float64)
    sizes = sorted({len(document.vector) for document in sample})
    if sizes != [now.shape[1]]:
        many = " or ".join(map(str, sizes))
        return [f"its vectors have {many} dimensions, and those of the model have {now.shape[1]}"], None
    then = np.stack([document.vector for document in sample]).astype(np.float64)
    similarities = _similarities(then, now)
    found = []
    if not rescales:
        found += lengths_differ(np.linalg.norm(then, axis=1), np.linalg.norm(now, axis=1))
    if about := unlike(similarities, least, "documents"):
        hints = [*_hints(texts, then, similarities, model, least)]
        found.append("; ".join((about, *hints)))
    return found, float(similarities.min())


def _similarities(then: NDArray[np.float64], now: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the cosine of each pair of rows; 0 for a vector without a direction."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(cosines(then, now))


def _hints(
    texts: list[str], then: NDArray[np.float64], similarities: NDArray[np.float64], model: Model, least: float
) -> Iterator[str]:
    """Yields guesses why documents differ, each of which was tried out."""
    low = similarities < least
    encoder = model.encoder
    if encoder is None:
        return
    instruction = encoder.instruction("document").prefix
    for other in dict.fromkeys((encoder.instruction("query").prefix, "")):
        if other == instruction:
            continue
        tried = silent_encoder(encoder, document_instruction=other).encode_documents(texts)
        if (_similarities(then, tried.astype(np.float64)) >= least).all():
            yield f"they agree with the document instruction {other!r}; now it is {instruction!r}"
            return
    if low.all() or encoder.backend.tokenizer.is_estimate:
        return
    lengths = encoder.count_tokens(texts)
    longest, shortest = int(lengths[~low].max()), int(lengths[low].min())
    if longest < shortest:
        yield (
            f"only texts of {shortest} tokens and more differ, so they were cut at another length (now "
            f"{encoder.max_length})"
        )
    else:
        yield "some agree, so the index has vectors of several models, or texts have changed since"
