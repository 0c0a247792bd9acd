"""The result of starting a model's engine."""

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
        slots: Slots for the engines that run the model. The first has its engine.
        facts: Facts of the model.
        tokenizer: The model's tokenizer.
        heads: Weights on top of the encoder; empty if there are none.
        source: The model as a library loaded it, if the engine needs it; `None` otherwise.
        torch_threads: Number of torch's threads that was set; `None` if none was set.
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
