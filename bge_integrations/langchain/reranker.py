"""BGE rerankers as LangChain document compressor and cross encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bge_integrations.adapters.cross_encoder_keywords import read_cross_encoder_kwargs, with_current_names
from bge_integrations.adapters.fields import setting
from bge_integrations.adapters.models import RerankerAdapter
from bge_integrations.langchain.compressor import ScoringCompressor
from bge_integrations.settings import RerankerSettings


class BgeReranker(RerankerAdapter, ScoringCompressor):
    """BGE rerankers in LangChain. A reranker sorts the documents of a retriever and keeps the best.

    Use it as the compressor of a `ContextualCompressionRetriever`, which keeps the scores, or as the model of a
    `CrossEncoderReranker`. It takes the arguments of langchain-community's `HuggingFaceCrossEncoder`. Its scores are
    logits, as in the authors' code, unless `normalize=True`. Rerankers with equal loading settings share one model in
    memory. Invalid settings raise pydantic's `ValidationError`, and loading raises errors of `bge_integrations.errors`.

    Example:
        ```python
        from bge_integrations.langchain import BgeReranker

        retriever = ContextualCompressionRetriever(
            base_compressor=BgeReranker(model_name="BAAI/bge-reranker-v2-m3", top_n=5),
            base_retriever=store.as_retriever(search_kwargs={"k": 50}),
        )
        ```
    """

    model_name: str = setting("model_name", default="BAAI/bge-reranker-v2-m3", alias="model")
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `CrossEncoder(...)`, such as `device` or `revision`. Each key is checked."""

    def __init__(self, **data: Any) -> None:  # noqa: ANN401 - the fields' own types
        if isinstance(data.get("model_kwargs"), dict):
            data["model_kwargs"] = with_current_names(data["model_kwargs"])
        super().__init__(**data)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Returns scores for pairs (query, text), in the order of the pairs. A higher score is better.

        Raises:
            BgeError: As `bge_integrations.BgeReranker.score_pairs`.
        """
        scores: list[float] = self.reranker.score_pairs(text_pairs).tolist()
        return scores

    async def ascore(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Async form of `score`. It does not block the event loop. Cancelling it drops uncomputed pairs."""
        scores: list[float] = (await (await self._reranker_async()).ascore_pairs(text_pairs)).tolist()
        return scores

    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return self.reranker.score(query, passages)

    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return await (await self._reranker_async()).ascore(query, passages)

    def _settings(self) -> RerankerSettings:
        given = read_cross_encoder_kwargs(self.model_kwargs, "model_kwargs")
        return RerankerSettings(**self._merged(given, RerankerSettings), model_name=self.model_name)
