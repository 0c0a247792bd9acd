"""What the adapters of both frameworks do with their settings, whichever pydantic class holds these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bge_integrations.driving import in_thread
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import ModelSettings, RerankerSettings


class Adapter:
    """Makes something of its settings, and makes it anew when one has been changed since."""

    if TYPE_CHECKING:
        # What was made, with the settings that it was made from; None before.
        _made: tuple[Any, Any] | None

    # Not marked as abstract: llama-index traces what overrides an abstract method, with its arguments.
    def _settings(self) -> Any:  # noqa: ANN401 - each class has its own
        """Reads the fields, as they are now."""
        raise NotImplementedError

    def _make(self, settings: Any) -> Any:  # noqa: ANN401 - as above
        """Loads or joins what the settings ask for."""
        raise NotImplementedError

    def _current(self) -> Any:  # noqa: ANN401 - as above
        """Returns what the settings ask for."""
        # One may have been changed since, by assignment, in a dictionary, or in a copy.
        settings = self._settings()
        made = self._made
        if made is None or made[0] != settings:
            made = self._made = settings, self._make(settings)
        return made[1]

    async def _current_async(self) -> Any:  # noqa: ANN401 - as above
        """As `_current`, which after unpickling may have to load the model."""
        return self._current() if self._made else await in_thread(self._current)


class M3Adapter(Adapter):
    """Holds a `BgeM3Encoder`."""

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


class RerankerAdapter(Adapter):
    """Holds a `BgeReranker`."""

    @property
    def reranker(self) -> BgeReranker:
        """The reranker underneath."""
        reranker: BgeReranker = self._current()
        return reranker

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """sentence-transformers' CrossEncoder underneath, or transformers' decoder; it knows none of these settings."""
        return self.reranker.client

    async def _reranker_async(self) -> BgeReranker:
        reranker: BgeReranker = await self._current_async()
        return reranker

    def _make(self, settings: RerankerSettings) -> BgeReranker:
        return BgeReranker.from_settings(settings)
