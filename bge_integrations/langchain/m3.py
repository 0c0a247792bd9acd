"""Common base of the LangChain classes for bge-m3."""

from __future__ import annotations

from bge_integrations.adapters.cross_encoder_keywords import read_common_kwargs
from bge_integrations.adapters.fields import setting
from bge_integrations.adapters.models import M3Adapter
from bge_integrations.langchain.base import BgeModel
from bge_integrations.settings import ModelSettings


class BgeM3Model(M3Adapter, BgeModel):
    """Settings of bge-m3, and the encoder made from them."""

    model_name: str = setting("model_name", default="BAAI/bge-m3", alias="model")

    def _settings(self) -> ModelSettings:
        given = read_common_kwargs(self.model_kwargs, "model_kwargs")
        return ModelSettings(**self._merged(given, ModelSettings), model_name=self.model_name)
