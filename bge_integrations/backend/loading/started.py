"""What is there once a model's engine runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bge_integrations.backend.engines.interface import Engine
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Heads
from bge_integrations.backend.scheduler import EngineSlot
from bge_integrations.backend.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from bge_integrations.backend.torch_models.base import Source


@dataclass(frozen=True)
class Started:
    """A running engine.

    Attributes:
        slots: Places for the engines that run the model; the first is filled.
        facts: What is known of the model.
        tokenizer: Its tokenizer.
        heads: The weights on top of the encoder, where there are any.
        source: The model as a library loaded it, where the engine holds on to it.
        torch_threads: The number of torch's threads that was set for it, if one was.
    """

    slots: tuple[EngineSlot, ...]
    facts: ModelFacts
    tokenizer: TextTokenizer
    heads: Heads
    source: Source | None = None
    torch_threads: int | None = None

    @property
    def engine(self) -> Engine:
        """The first engine."""
        engine = self.slots[0].engine
        if engine is None:
            raise AssertionError("the first slot is filled when a model is started")
        return engine
