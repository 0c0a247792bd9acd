"""What the adapters of both frameworks hold: encoders, rerankers, and bge-m3 whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import PrivateAttr

from bge_integrations.adapters.fields import EncoderFields, RerankerFields
from bge_integrations.adapters.keywords import EncodingKwargs, LoadingKwargs
from bge_integrations.adapters.prompts import build_encoders
from bge_integrations.adapters.remade import Adapter, Made
from bge_integrations.encoder import BgeEncoder
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import EncoderSettings, ModelSettings, RerankerSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EncodingSettings(NamedTuple):
    """What the fields of embeddings say.

    Attributes:
        common: What holds for documents and queries.
        loading: Prompts by name.
        document: What is said of documents alone.
        query: What is said of queries alone.
    """

    common: EncoderSettings
    loading: LoadingKwargs
    document: EncodingKwargs = EncodingKwargs()
    query: EncodingKwargs = EncodingKwargs()


class EncoderAdapter(EncoderFields, Adapter):
    """Holds a `BgeEncoder` of documents and one of queries."""

    _made: Made[EncodingSettings, tuple[BgeEncoder, BgeEncoder]] | None = PrivateAttr(default=None)

    @property
    def encoder(self) -> BgeEncoder:
        """The encoder of documents."""
        return self._role_encoders()[0]

    @property
    def client(self) -> SentenceTransformer:
        """The SentenceTransformer underneath; its `encode` knows none of these settings, and it takes none."""
        return self.encoder.client

    def _role_encoders(self) -> tuple[BgeEncoder, BgeEncoder]:
        made = self._made = Made.again(self._made, self._stored(), self._settings, lambda said: build_encoders(*said))
        return made.model

    async def _role_encoders_async(self) -> tuple[BgeEncoder, BgeEncoder]:
        await self._loaded_async()
        return self._role_encoders()

    def _load(self) -> None:
        self._role_encoders()

    def _settings(self) -> EncodingSettings:
        """Reads the fields, as they are now."""
        raise NotImplementedError


class M3Adapter(Adapter):
    """Holds a `BgeM3Encoder`."""

    _made: Made[ModelSettings, BgeM3Encoder] | None = PrivateAttr(default=None)

    @property
    def encoder(self) -> BgeM3Encoder:
        """The encoder of all of bge-m3's outputs."""
        made = self._made = Made.again(self._made, self._stored(), self._settings, BgeM3Encoder.from_settings)
        return made.model

    async def _encoder_async(self) -> BgeM3Encoder:
        await self._loaded_async()
        return self.encoder

    def _load(self) -> None:
        _ = self.encoder

    def _settings(self) -> ModelSettings:
        """Reads the fields, as they are now."""
        raise NotImplementedError


class RerankerAdapter(RerankerFields, Adapter):
    """Holds a `BgeReranker`."""

    _made: Made[RerankerSettings, BgeReranker] | None = PrivateAttr(default=None)

    @property
    def reranker(self) -> BgeReranker:
        """The reranker underneath."""
        made = self._made = Made.again(self._made, self._stored(), self._settings, BgeReranker.from_settings)
        return made.model

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """sentence-transformers' CrossEncoder underneath, or transformers' decoder; it knows and takes no settings."""
        return self.reranker.client

    async def _reranker_async(self) -> BgeReranker:
        await self._loaded_async()
        return self.reranker

    def _load(self) -> None:
        _ = self.reranker

    def _settings(self) -> RerankerSettings:
        """Reads the fields, as they are now."""
        raise NotImplementedError
