"""Common base of the LlamaIndex classes for bge-m3."""

from __future__ import annotations

from typing import Any, ClassVar

from llama_index.core.bridge.pydantic import Field

from bge_integrations.adapters.cross_encoder_keywords import COMMON_KEYS, read_common_kwargs
from bge_integrations.adapters.fields import setting
from bge_integrations.adapters.models import M3Adapter
from bge_integrations.llama_index.base import BgeModel
from bge_integrations.settings import ModelSettings


class BgeM3Model(M3Adapter, BgeModel):
    """Settings of bge-m3, and the encoder made from them."""

    further_field: ClassVar[str] = "sentence_transformer_kwargs"
    further_keys: ClassVar[tuple[str, ...]] = COMMON_KEYS

    model_name: str = setting("model_name", default="BAAI/bge-m3")
    sentence_transformer_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of SentenceTransformer(...), such as model_kwargs."
    )

    def _settings(self) -> ModelSettings:
        further = read_common_kwargs(self.sentence_transformer_kwargs, "the arguments")
        return ModelSettings(**self._merged(further, ModelSettings))
