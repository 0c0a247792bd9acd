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
        encoders: tuple[BgeEncoder, BgeEncoder] = self._model()
        return encoders

    async def _role_encoders_async(self) -> tuple[BgeEncoder, BgeEncoder]:
        encoders: tuple[BgeEncoder, BgeEncoder] = await self._model_async()
        return encoders

    def _make(self, settings: EncodingSettings) -> tuple[BgeEncoder, BgeEncoder]:
        return build_encoders(*settings)

    def _settings(self) -> EncodingSettings:
        raise NotImplementedError


class M3Adapter(Adapter):
    """Holds a `BgeM3Encoder`."""

    _made: Made[ModelSettings, BgeM3Encoder] | None = PrivateAttr(default=None)

    @property
    def encoder(self) -> BgeM3Encoder:
        """The encoder for all of bge-m3's outputs."""
        encoder: BgeM3Encoder = self._model()
        return encoder

    async def _encoder_async(self) -> BgeM3Encoder:
        encoder: BgeM3Encoder = await self._model_async()
        return encoder

    def _make(self, settings: ModelSettings) -> BgeM3Encoder:
        return BgeM3Encoder.from_settings(settings)

    def _settings(self) -> ModelSettings:
        raise NotImplementedError


class RerankerAdapter(RerankerFields, Adapter):
    """Holds a `BgeReranker`."""

    _made: Made[RerankerSettings, BgeReranker] | None = PrivateAttr(default=None)

    @property
    def reranker(self) -> BgeReranker:
        """The underlying reranker."""
        reranker: BgeReranker = self._model()
        return reranker

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """The underlying CrossEncoder or decoder. It ignores these settings. Its own settings are read-only."""
        return self.reranker.client

    async def _reranker_async(self) -> BgeReranker:
        reranker: BgeReranker = await self._model_async()
        return reranker

    def _make(self, settings: RerankerSettings) -> BgeReranker:
        return BgeReranker.from_settings(settings)

    def _settings(self) -> RerankerSettings:
        raise NotImplementedError
