"""Imports mteb, and keeps it quiet while it runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bge_integrations._optional import require
from bge_integrations.errors import MissingExtraError

__all__ = ["import_mteb", "quiet"]

_LEAST_PYTHON = (3, 11)


def import_mteb() -> Any:  # noqa: ANN401 - a module without usable types
    """Imports mteb. This takes some seconds.

    Raises:
        MissingExtraError: mteb is not installed, or this Python is too old for it.
    """
    if sys.version_info < _LEAST_PYTHON:
        raise MissingExtraError(
            f"mteb needs Python 3.11 or newer, and this is Python {sys.version_info[0]}.{sys.version_info[1]}. Use a "
            "newer Python; evaluate_retrieval, evaluate_pairs and evaluate_classification work with this one."
        )
    return require("mteb", extra="mteb")


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back mteb's log messages, its warnings, and the progress bars of datasets.

    mteb warns of every task that has a successor, although a benchmark names exactly this version. The bars show the
    conversion of tables. Log messages stay if the program has set up logging for mteb.
    """
    import datasets

    logger = logging.getLogger("mteb")
    level, had_bars = logger.level, datasets.are_progress_bars_disabled() is False
    if level == logging.NOTSET and not logger.hasHandlers():
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(mteb|datasets|sklearn|torch)(\.|$)")
            yield
    finally:
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
