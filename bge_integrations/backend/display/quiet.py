"""Hides progress bars and useless reports of other libraries while they work for this package.

The libraries' own switches affect the whole process. The changes here affect only threads inside a block, and they are
reverted when no thread is inside.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bge_integrations.backend.guarantees.forks import ForkSafeLock
from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)

_OF_A_LAYER = re.compile(r"\blayers?\b")

TakeBack = Callable[[], None]


class _Quiet:
    """Changes to a library that last while any thread is inside a block. Other threads do not notice them."""

    def __init__(self, change: Callable[[Callable[[], bool]], TakeBack]) -> None:
        """Prepares the changes.

        Args:
            change: Function that makes the changes and returns a function that reverts them. Its argument is a function
                that says whether the calling thread is inside a block.
        """
        self._change = change
        self._lock = ForkSafeLock()
        self._inside = 0
        self._own = threading.local()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block in which this thread shows nothing."""
        with self._lock:
            if not self._inside:
                self._take_back = self._change(self._is_own)
            self._inside += 1
        self._own.depth = getattr(self._own, "depth", 0) + 1
        try:
            yield
        finally:
            self._own.depth -= 1
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._take_back()

    def _is_own(self) -> bool:
        return bool(getattr(self._own, "depth", 0))


def _replaced(module: str, name: str, method: str, instead: Callable[..., Any]) -> TakeBack:
    """Replaces a method of a library's class.

    Args:
        module: Name of the class's module.
        name: Name of the class.
        method: Name of the method.
        instead: The replacement. Its first argument is the original method, before the method's own arguments.

    Returns:
        A function that restores the original, unless other code has replaced the method since.
    """
    try:
        kind = getattr(importlib.import_module(module), name)
        original = vars(kind)[method]
    except (ImportError, AttributeError, KeyError):  # another version of the library: its output is not an error
        logger.info("%s has no %s.%s; its output can't be hidden", module, name, method)
        return lambda: None

    @functools.wraps(original)
    def ours(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the method's own
        return instead(original, *args, **kwargs)

    setattr(kind, method, ours)

    def put_back() -> None:
        if vars(kind)[method] is ours:
            setattr(kind, method, original)

    return put_back


def _change_transformers(is_own: Callable[[], bool]) -> TakeBack:
    def bar(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as tqdm
        if not is_own():
            return original(*args, **kwargs)
        from transformers.utils import logging as transformers_logging

        none: Any = transformers_logging.EmptyTqdm
        return none(*args[1:], **kwargs)

    def report(original: Callable[..., str | None], weights: Any, *args: Any) -> str | None:  # noqa: ANN401 - as below
        return None if is_own() and _are_known(weights) else original(weights, *args)

    put_bars_back = _replaced("transformers.utils.logging", "_tqdm_cls", "__call__", bar)
    put_reports_back = _replaced(
        "transformers.utils.loading_report", "LoadStateDictInfo", "create_loading_report", report
    )

    def take_back() -> None:
        put_bars_back()
        put_reports_back()

    return take_back


def _are_known(weights: Any) -> bool:  # noqa: ANN401 - transformers' LoadStateDictInfo
    """Whether weights are only missing, which this package checks itself, or left over from an unused head.

    Encoders are often saved with the head of their training and without BERT's pooler. But if whole layers are left
    over, the configuration is wrong.
    """
    if weights.mismatched_keys or weights.conversion_errors or weights.error_msgs:
        return False
    return not any(_OF_A_LAYER.search(key) for key in weights.unexpected_keys)


def _change_nncf(is_own: Callable[[], bool]) -> TakeBack:
    from rich.console import Console

    def bar(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as nncf has it
        # Before version 14, rich ends a bar that is disabled with an empty line.
        original(*args, **{**kwargs, "disable": True, "console": Console(quiet=True)} if is_own() else kwargs)

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not is_own()

    log = logging.getLogger("nncf")
    # A new list each time, because another thread may be iterating over the old one.
    log.filters = [*log.filters, is_wanted]
    put_back = _replaced("nncf.common.logging.track_progress", "track", "__init__", bar)

    def take_back() -> None:
        put_back()
        log.filters = [each for each in log.filters if each is not is_wanted]

    return take_back


quiet_transformers = _Quiet(_change_transformers)
"""Hides bars of transformers, and reports of weights that this package checks itself."""

quiet_nncf = _Quiet(_change_nncf)
"""Hides bars of nncf, and its log records below the level of errors. Both would go to standard output."""
