"""Counts what a model does: for `BgeEncoder.stats()`, and for OpenTelemetry where the application uses it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bge_integrations.backend.guarantees.forks import ForkSafeLock
from bge_integrations.backend.scheduler import telemetry
from bge_integrations.backend.scheduler.job import Priority


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a loaded model has done so far, for all encoders and adapters that share it.

    Attributes:
        texts: Texts computed.
        tokens: Their tokens, special tokens and instructions included.
        padding_tokens: Tokens computed beyond these, because short texts were padded.
        batches: Forward passes.
        truncated_texts: Texts that were cut.
        failed_texts: Texts that the engine failed on even alone.
        queue_seconds: What all texts together waited for an engine.
        engine_seconds: What engines computed; several that run side by side count together.
    """

    texts: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    batches: int = 0
    truncated_texts: int = 0
    failed_texts: int = 0
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0

    @property
    def batch_fill(self) -> float:
        """Share of what was computed that was no padding, 0 to 1; 1 before anything was."""
        computed = self.tokens + self.padding_tokens
        return self.tokens / computed if computed else 1.0


class Meter:
    """Adds up the statistics of one model. Safe to use from any thread."""

    def __init__(self, model: str, device: str) -> None:
        """Starts at nothing.

        Args:
            model: Its name, for telemetry.
            device: Where it runs, for telemetry.
        """
        self._attributes = {"bge.model": model, "bge.device": device}
        self._lock = ForkSafeLock()
        self._counted: dict[str, float] = dataclasses.asdict(Statistics())

    def read(self) -> Statistics:
        """Returns what was counted so far."""
        with self._lock:
            return Statistics(**self._counted)  # type: ignore[arg-type]  # counts of texts stay whole numbers

    def add(self, *, priority: Priority | None = None, **amounts: float) -> None:
        """Counts something.

        Args:
            priority: Of the texts, where all have the same.
            **amounts: By the names of fields of `Statistics`.
        """
        with self._lock:
            for name, amount in amounts.items():
                self._counted[name] += amount
        telemetry.record(amounts, {**self._attributes, "bge.priority": priority} if priority else self._attributes)
