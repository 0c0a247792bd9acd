"""bge-m3 as a LlamaIndex reranker: every token of a query is compared with every token of a node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import Field
from numpy.typing import NDArray

from bge_integrations.llama_index.m3 import BgeM3Model
from bge_integrations.llama_index.postprocessor import ScoringPostprocessor
from bge_integrations.m3 import M3Weights
from bge_integrations.settings import ModelSettings


class BgeM3Rerank(BgeM3Model, ScoringPostprocessor):
    """Reranks with bge-m3 itself, so that whoever stores its vectors needs no second model.

    Reads query and nodes each on its own, where `BgeRerank` reads them together, and is used in the same places.
    Shares one model in memory with `BgeSparseEmbedding` of equal loading settings.

    Example:
        ```python
        from bge_integrations.llama_index import BgeM3Rerank

        engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[BgeM3Rerank(top_n=5)])
        ```
    """

    weights: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 1.0),
        description="Of the dense, the lexical and the token-wise (ColBERT) score; what weighs 0 is not computed.",
    )

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-m3", **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or joins those that already hold it.

        Args:
            model_name: Hub id or local folder.
            **kwargs: The fields above, and arguments of `SentenceTransformer(...)`.

        Raises:
            pydantic.ValidationError: A field's value is of the wrong type.
            SettingsError: An argument that is unknown or can't be honoured.
            BgeError: Whatever loading raises; see `bge_integrations.BgeM3Encoder`.
        """
        super().__init__(model_name=model_name, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "BgeM3Rerank"

    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return self.encoder.score(query, passages, weights=self.weights)

    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return await (await self._encoder_async()).ascore(query, passages, weights=self.weights)

    def _settings(self) -> ModelSettings:
        M3Weights.read(self.weights)  # refused before anything is loaded
        return super()._settings()
