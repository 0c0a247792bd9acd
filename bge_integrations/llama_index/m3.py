"""What the LlamaIndex classes on bge-m3 have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from llama_index.core.bridge.pydantic import Field

from bge_integrations.cross_encoder_kwargs import COMMON_KEYS, read_common_kwargs
from bge_integrations.llama_index.model import BgeModel
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.settings import ModelSettings


class BgeM3Model(BgeModel):
    """Settings of bge-m3, and the encoder that is made from them."""

    further_field: ClassVar[str] = "sentence_transformer_kwargs"
    further_keys: ClassVar[tuple[str, ...]] = COMMON_KEYS

    model_name: str = Field(default="BAAI/bge-m3", description="Hub id or local folder.")
    sentence_transformer_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of SentenceTransformer(...), such as model_kwargs."
    )

    @property
    def encoder(self) -> BgeM3Encoder:
        """The encoder of all of bge-m3's outputs."""
        encoder: BgeM3Encoder = self._current()
        return encoder

    async def _encoder_async(self) -> BgeM3Encoder:
        encoder: BgeM3Encoder = await self._current_async()
        return encoder

    def _make(self, settings: ModelSettings) -> BgeM3Encoder:
        return BgeM3Encoder.from_settings(settings)

    def _settings(self) -> ModelSettings:
        further = read_common_kwargs(self.sentence_transformer_kwargs, "the arguments")
        return ModelSettings(**self._merged(further, ModelSettings))
