"""The progress bar during a call, and warnings at the user's line of code."""

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

_SHOWN_EVERY_S = 0.04  # a bar of half a second moves visibly, and a long bar has no measurable cost
_INNER_MODULES = ("bge_integrations", "langchain_core", "llama_index", "llama_index_instrumentation", "wrapt")


class Progress:
    """A bar that counts texts and shows tokens per second, if it is requested.

    If the bar cannot be shown, the work continues without it. Inside `whole` of a larger call, it counts for the bar of
    that call.
    """

    def __init__(self, total: int | None, *, shown: bool, unit: str = "text", title: str = "Computing") -> None:
        """Describes the bar. `with` shows it.

        Args:
            total: Number of texts; `None` if it is not known.
            shown: Whether the bar is requested.
            unit: The word for a text.
            title: The words before the bar.
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
        """Whether the counts of `add` are shown."""
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
        """A block in which this bar counts for all calls of this context. These calls show no bars of their own.

        Texts that needed no computation, because their results were stored elsewhere, are counted at the end.
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
        """Changes the bar, and continues without it if that fails."""

        def attempt() -> None:
            try:
                show()
            except Exception:  # from a widget, a missing package of a notebook, or an application's standard error
                logger.warning("a progress bar can't be shown; the call continues without it", exc_info=True)
                self._shown = False

        uninterrupted(attempt)


def counts_for_another() -> bool:
    """Whether the bar of a larger call counts what is computed in this context; see `Progress.whole`."""
    return _whole_call.get() is not None


_whole_call: ContextVar[Progress | None] = ContextVar("bge_integrations_whole_call", default=None)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns at the line of user code that made the call. It warns every time, not only the first time."""
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
        raise  # the user's filter turns the warning into an error
    except Exception as error:  # standard error is closed, or the application's function for warnings fails
        if is_from_signal(error):
            raise
        logger.info("a warning can't be shown (%r): %s", error, message)
