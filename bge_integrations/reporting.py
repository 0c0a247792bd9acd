"""What a user sees while texts are encoded: the progress bar, and the warning about texts that were cut."""

from __future__ import annotations

import sys
import threading
import time
import warnings

_INNER_MODULES = ("bge_integrations", "langchain_core", "llama_index", "llama_index_instrumentation", "wrapt")


class TruncationWarning(UserWarning):
    """Some texts of a call were longer than the model reads, and were cut."""


class PoolingWarning(UserWarning):
    """Nothing says how a model makes a vector of its hidden states, so that the mean of all tokens is taken."""


class Progress:
    """A bar that counts texts and shows tokens per second; nothing at all if it is not wanted."""

    def __init__(self, total: int | None, *, shown: bool, unit: str = "text") -> None:
        self._total = total
        self._unit = unit
        self._shown = shown
        self._tokens = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        if self._shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, unit=self._unit, desc="Computing")
            self._start = time.perf_counter()
        return self

    def add(self, texts: int, tokens: int) -> None:
        """Counts a batch, from any thread."""
        if not self._shown:
            return
        with self._lock:
            self._tokens += tokens
            rate = self._tokens / max(time.perf_counter() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self._bar.update(texts)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.close()


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns at the line of user code that made the call, every time, not only the first."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INNER_MODULES:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry={},
    )
