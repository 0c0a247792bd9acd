"""What a user sees while texts are encoded: the progress bar, and the warning about texts that were cut."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from bge_integrations.backend.display.bars import steady
from bge_integrations.backend.guarantees.interrupts import uninterrupted
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.guarantees.signals import is_from_signal

logger = get_logger(__name__)

_SHOWN_EVERY_S = 0.04  # a bar of half a second moves, and a long one costs nothing that could be measured
_INNER_MODULES = ("bge_integrations", "langchain_core", "llama_index", "llama_index_instrumentation", "wrapt")


class Progress:
    """A bar that counts texts and shows tokens per second; nothing at all if it is not wanted.

    Where it can't be shown, the work goes on without it. Within `whole` it counts for the bar of the larger call.
    """

    def __init__(self, total: int | None, *, shown: bool, unit: str = "text", title: str = "Computing") -> None:
        """Describes it; it appears with `with`.

        Args:
            total: Texts to come; None if that is not known.
            shown: Whether it is wanted.
            unit: What is counted, in words.
            title: What stands before it.
        """
        self._total = total
        self._unit = unit
        self._title = title
        self._whole = _whole_call.get()
        self._shown = shown and self._whole is None
        self._texts = 0
        self._tokens = 0
        self._lock = threading.Lock()
        self._bar: Any = None

    @property
    def counts(self) -> bool:
        """Whether anything is shown of what `add` counts."""
        return self._shown or (self._whole is not None and self._whole.counts)

    def __enter__(self) -> Progress:
        if self._shown:
            self._start = time.perf_counter()
            self._try(self._open)
        return self

    def add(self, texts: int, tokens: int) -> None:
        """Counts a batch, from any thread."""
        if self._whole is not None:
            self._whole.add(texts, tokens)
        if self._shown:
            self._try(lambda: self._advance(texts, tokens))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Has this bar count what all calls within it do in this context, which show no bars of their own.

        Texts that needed no computing, since they were found elsewhere, are counted at the end.
        """
        token = _whole_call.set(self)
        try:
            yield
        finally:
            _whole_call.reset(token)
        self.add((self._total or self._texts) - self._texts, 0)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._try(lambda: self._bar.close())

    def _open(self) -> None:
        from tqdm.auto import tqdm

        self._bar = steady(tqdm)(total=self._total, unit=self._unit, desc=self._title, mininterval=_SHOWN_EVERY_S)

    def _advance(self, texts: int, tokens: int) -> None:
        with self._lock:
            self._texts += texts
            self._tokens += tokens
            rate = self._tokens / max(time.perf_counter() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self._bar.update(texts)

    def _try(self, show: Callable[[], None]) -> None:
        """Does something to the bar, and goes on without it if that fails: a bar never costs a result."""

        def attempt() -> None:
            try:
                show()
            except Exception:  # of a widget, a package that a notebook lacks, an application's own standard error
                logger.warning("a progress bar can't be shown; going on without it", exc_info=True)
                self._shown = False

        uninterrupted(attempt)


_whole_call: ContextVar[Progress | None] = ContextVar("bge_integrations_whole_call", default=None)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns at the line of user code that made the call, every time, not only the first."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INNER_MODULES:
        frame = frame.f_back
    try:
        warnings.warn_explicit(
            message,
            category,
            filename=frame.f_code.co_filename,
            lineno=frame.f_lineno,
            module=frame.f_globals.get("__name__"),
            registry={},
        )
    except Warning:
        raise  # a user's filter makes an error of it
    except Exception as error:  # standard error is closed, or what an application shows warnings with fails
        if is_from_signal(error):
            raise
        logger.info("a warning can't be shown (%r): %s", error, message)
