"""Base classes of both frameworks' adapters, which hold encoders, rerankers, or a `BgeM3Encoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import PrivateAttr

from bge_integrations.adapters.fields import EncoderFields, RerankerFields
from bge_integrations.adapters.keywords import EncodingKwargs, LoadingKwargs
from bge_integrations.adapters.prompts import build_encoders
from bge_integrations.adapters.remade import Adapter, Made
from bge_integrations.encoder import BgeEncoder
from bge_integrations.fingerprint import Fingerprint
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import EncoderSettings, ModelSettings, RerankerSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EncodingSettings(NamedTuple):
    """The settings in an adapter's fields."""

    common: EncoderSettings
    loading: LoadingKwargs
    document: EncodingKwargs = EncodingKwargs()
    query: EncodingKwargs = EncodingKwargs()


class EncoderAdapter(EncoderFields, Adapter):
    """Holds a `BgeEncoder` for documents and one for queries."""

    _made: Made[EncodingSettings, tuple[BgeEncoder, BgeEncoder]] | None = PrivateAttr(default=None)

    @property
    def encoder(self) -> BgeEncoder:
        """The encoder for documents."""
        return self._role_encoders()[0]

    @property
    def query_encoder(self) -> BgeEncoder:
        """The encoder for queries."""
        return self._role_encoders()[1]

    @property
    def client(self) -> SentenceTransformer:
        """The underlying SentenceTransformer. Its `encode` ignores these settings. Its own settings are read-only."""
        return self.encoder.client

    def fingerprint(self) -> Fingerprint:
        """Returns what the document vectors depend on, for an index's metadata: see `BgeEncoder.fingerprint`."""
        return self.encoder.fingerprint()

    def _role_encoders(self) -> tuple[BgeEncoder, BgeEncoder]:
        made = self._made = Made.again(self._made, self._stored(), self._settings, lambda said: build_encoders(*said))
        return made.model

    async def _role_encoders_async(self) -> tuple[BgeEncoder, BgeEncoder]:
        await self._loaded_async()
        return self._role_encoders()

    def _load(self) -> None:
        self._role_encoders()

    def _settings(self) -> EncodingSettings:
        raise NotImplementedError


class M3Adapter(Adapter):
    """Holds a `BgeM3Encoder`."""

    _made: Made[ModelSettings, BgeM3Encoder] | None = PrivateAttr(default=None)

    @property
    def encoder(self) -> BgeM3Encoder:
        """The encoder for all of bge-m3's outputs."""
        made = self._made = Made.again(self._made, self._stored(), self._settings, BgeM3Encoder.from_settings)
        return made.model

    async def _encoder_async(self) -> BgeM3Encoder:
        await self._loaded_async()
        return self.encoder

    def _load(self) -> None:
        _ = self.encoder

    def _settings(self) -> ModelSettings:
        raise NotImplementedError


class RerankerAdapter(RerankerFields, Adapter):
    """Holds a `BgeReranker`."""

    _made: Made[RerankerSettings, BgeReranker] | None = PrivateAttr(default=None)

    @property
    def reranker(self) -> BgeReranker:
        """The underlying reranker."""
        made = self._made = Made.again(self._made, self._stored(), self._settings, BgeReranker.from_settings)
        return made.model

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """The underlying CrossEncoder or decoder. It ignores these settings. Its own settings are read-only."""
        return self.reranker.client

    async def _reranker_async(self) -> BgeReranker:
        await self._loaded_async()
        return self.reranker

    def _load(self) -> None:
        _ = self.reranker

    def _settings(self) -> RerankerSettings:
        raise NotImplementedError
