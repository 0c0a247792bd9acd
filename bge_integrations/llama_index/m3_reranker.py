"""bge-m3 as a LlamaIndex reranker, which compares every token of a query with every token of a node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import Field
from numpy.typing import NDArray

from bge_integrations.calls.m3 import require_served
from bge_integrations.llama_index.m3 import BgeM3Model
from bge_integrations.llama_index.postprocessor import ScoringPostprocessor
from bge_integrations.m3 import M3Weights
from bge_integrations.settings import ModelSettings


class BgeM3Rerank(BgeM3Model, ScoringPostprocessor):
    """Reranks with bge-m3 itself, so a retriever with its vectors needs no second model.

    It is used like `BgeRerank`, but it reads query and nodes separately. It shares one model in memory with
    `BgeSparseEmbedding` of equal loading settings.

    Example:
        ```python
        from bge_integrations.llama_index import BgeM3Rerank

        engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[BgeM3Rerank(top_n=5)])
        ```
    """

    weights: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 1.0),
        description="Weights of the dense, the lexical and the token-wise (ColBERT) score. A score of weight 0 is not "
        "computed.",
    )

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-m3", **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or shares a loaded one.

        Args:
            model_name: Hub id or local folder.
            **kwargs: The fields above, and arguments of `SentenceTransformer(...)`.

        Raises:
            pydantic.ValidationError: The value of a field has the wrong type.
            SettingsError: An argument is unknown, invalid or not supported.
            BgeError: Loading fails; see `bge_integrations.BgeM3Encoder`.
        """
        super().__init__(model_name=model_name, **kwargs)

    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return self.encoder.score(query, passages, weights=self.weights)

    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return await (await self._encoder_async()).ascore(query, passages, weights=self.weights)

    def _settings(self) -> ModelSettings:
        # refused before anything is loaded
        require_served(self.endpoint, M3Weights.read(self.weights).wanted)
        return super()._settings()
