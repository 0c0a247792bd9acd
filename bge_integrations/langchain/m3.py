"""What the LangChain classes on bge-m3 have in common."""

from __future__ import annotations

from pydantic import Field

from bge_integrations.cross_encoder_kwargs import read_common_kwargs
from bge_integrations.langchain.model import BgeModel
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.settings import ModelSettings


class BgeM3Model(BgeModel):
    """Settings of bge-m3, and the encoder that is made from them."""

    model_name: str = Field(default="BAAI/bge-m3", alias="model")
    """Hub id or local folder."""

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
        given = read_common_kwargs(self.model_kwargs, "model_kwargs")
        return ModelSettings(**self._merged(given, ModelSettings), model_name=self.model_name)
