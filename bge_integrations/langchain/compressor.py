"""Common base of the LangChain rerankers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from numpy.typing import NDArray
from pydantic import FiniteFloat

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.errors import SettingsError
from bge_integrations.langchain.base import BgeModel

if TYPE_CHECKING:
    from langchain_core.callbacks import Callbacks


_FEW_DOCUMENTS = 256  # copied in about a millisecond


class ScoringCompressor(BgeModel, BaseDocumentCompressor, BaseCrossEncoder):
    """Sorts documents by their scores for a query, and removes documents with low scores."""

    top_n: int | None = None
    """Number of documents to keep. `None`: all documents."""
    score_threshold: FiniteFloat | None = None
    """Least score of the documents to keep. `None`: no limit."""

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - LangChain's signature
    ) -> list[Document]:
        """Returns the best documents, best first, with their scores. `callbacks` is not used.

        Returns:
            Copies, each with its score as the Python float `metadata["relevance_score"]`. Dictionaries and lists in the
            metadata are copied, but not the values inside them. Documents with equal scores keep their order.

        Raises:
            SettingsError: A setting was changed to an invalid value.
            BgeError: As `bge_integrations.BgeReranker.score`.
        """
        self._check()
        return self._best(documents, self._rate(query, _texts(documents))) if documents else []

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - as above
    ) -> list[Document]:
        """Async form of `compress_documents`. It does not block the event loop. Cancelling drops uncomputed pairs."""
        self._check()
        if not documents:
            return []
        scores = await self._arate(query, _texts(documents))
        if len(documents) <= _FEW_DOCUMENTS:
            return self._best(documents, scores)
        return await in_thread(partial(self._best, documents, scores))

    @abstractmethod
    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Returns the scores of passages for a query, shape [passages]."""

    @abstractmethod
    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Async form of `_rate`. It does not block the event loop."""

    def _check(self) -> None:
        super()._check()
        if self.top_n is not None and self.top_n < 1:
            raise SettingsError(f"top_n={self.top_n!r} must be at least 1, or None for all documents.")

    def _best(self, documents: Sequence[Document], scores: NDArray[np.float32]) -> list[Document]:
        order = np.argsort(-scores, kind="stable")
        if self.score_threshold is not None:
            order = order[scores[order] >= self.score_threshold]
        return [_with_score(documents[place], float(scores[place])) for place in order[: self.top_n]]


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _with_score(document: Document, score: float) -> Document:
    # A shallow copy: a deep one fails for an open file, a lock or a connection.
    metadata = {key: value.copy() if type(value) in (dict, list) else value for key, value in document.metadata.items()}
    return document.model_copy(update={"metadata": {**metadata, "relevance_score": score}})
