"""BGE rerankers as a LlamaIndex `BaseNodePostprocessor`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from llama_index.core.bridge.pydantic import Field
from numpy.typing import NDArray

from bge_integrations.adapters.cross_encoder_keywords import (
    CROSS_ENCODER_KEYS,
    read_cross_encoder_kwargs,
    with_current_names,
)
from bge_integrations.adapters.fields import setting
from bge_integrations.adapters.models import RerankerAdapter
from bge_integrations.llama_index.postprocessor import ScoringPostprocessor
from bge_integrations.settings import RerankerSettings


class BgeRerank(RerankerAdapter, ScoringPostprocessor):
    """Sorts retrieved nodes by the scores of a BGE reranker.

    It takes the arguments of llama-index-postprocessor-sbert-rerank's `SentenceTransformerRerank`. Its scores are
    logits, as in the authors' code, unless `normalize=True`. It reads as many tokens as the model can, unless
    `max_length` is given. The given nodes are not changed. Rerankers with equal loading settings share one model in
    memory, also with LangChain classes.

    Example:
        ```python
        from bge_integrations.llama_index import BgeRerank

        engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[BgeRerank(top_n=5)])
        ```
    """

    further_field: ClassVar[str] = "cross_encoder_kwargs"
    further_keys: ClassVar[tuple[str, ...]] = CROSS_ENCODER_KEYS
    renamed: ClassVar[Mapping[str, str]] = {"model": "model_name"}

    model_name: str = setting("model_name", default="BAAI/bge-reranker-v2-m3")
    cross_encoder_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of CrossEncoder(...), such as model_kwargs."
    )

    def __init__(self, model_name: str | os.PathLike[str] | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Checks the settings, then loads the model or shares a loaded one.

        Args:
            model_name: Hub id or local folder. `model` is another name of this argument.
            **kwargs: The fields above, and arguments of `CrossEncoder(...)`.

        Raises:
            pydantic.ValidationError: The value of a field has the wrong type.
            SettingsError: An argument is unknown, invalid or not supported.
            BgeError: Loading fails; see `bge_integrations.BgeReranker`.
        """
        named = {} if model_name is None else {"model_name": model_name}
        super().__init__(**named, **kwargs)

    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return self.reranker.score(query, passages)

    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        return await (await self._reranker_async()).ascore(query, passages)

    def _settings(self) -> RerankerSettings:
        further = read_cross_encoder_kwargs(self.cross_encoder_kwargs, "the arguments")
        return RerankerSettings(**self._merged(further, RerankerSettings))

    @classmethod
    def _to_fields(cls, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given = kwargs.get(cls.further_field)
        if isinstance(given, Mapping):  # before a token is looked for, and types of torch are written as text
            kwargs = {**kwargs, cls.further_field: with_current_names(given)}
        fields = super()._to_fields(kwargs)
        return {**fields, cls.further_field: with_current_names(fields[cls.further_field])}
