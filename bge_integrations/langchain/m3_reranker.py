"""bge-m3 as a LangChain reranker, which compares every token of a query with every token of a document."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.calls.m3 import require_served
from bge_integrations.langchain.compressor import ScoringCompressor
from bge_integrations.langchain.m3 import BgeM3Model
from bge_integrations.m3 import M3Weights


class BgeM3Reranker(BgeM3Model, ScoringCompressor):
    """Reranks with bge-m3 itself, so a retriever with its vectors needs no second model.

    It is used like `BgeReranker`, but it reads query and documents separately. It shares one model in memory with
    `BgeSparseEmbeddings` of equal loading settings.

    Example:
        ```python
        from bge_integrations.langchain import BgeM3Reranker

        reranker = BgeM3Reranker(model_name="BAAI/bge-m3", top_n=5)
        best = reranker.compress_documents(documents, "what is a panda?")
        ```
    """

    weights: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Weights of the dense, the lexical and the token-wise (ColBERT) score. A score of weight 0 is not computed."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Returns scores for pairs (query, text), in the order of the pairs. A higher score is better.

        Raises:
            BgeError: As `bge_integrations.BgeM3Encoder.score_pairs`.
        """
        scores: list[float] = self.encoder.score_pairs(text_pairs, weights=self.weights).tolist()
        return scores

    async def ascore(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Async form of `score`. It does not block the event loop. Cancelling it drops uncomputed pairs."""
        encoder = await self._encoder_async()
        scores: list[float] = (await encoder.ascore_pairs(text_pairs, weights=self.weights)).tolist()
        return scores

    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return self.encoder.score(query, passages, weights=self.weights)

    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return await (await self._encoder_async()).ascore(query, passages, weights=self.weights)

    def _check(self) -> None:
        super()._check()
        require_served(self.endpoint, M3Weights(*self.weights).wanted)
