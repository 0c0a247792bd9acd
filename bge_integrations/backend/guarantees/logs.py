"""Loggers whose handlers cost no result.

A handler that an application has added may raise, and so do Python's own where standard error is closed. Records are
written by threads that compute for many callers, and between a result and its caller.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bge_integrations.backend.guarantees.signals import is_from_signal

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # no generic class at run time before Python 3.11


class SafeLogger(_Adapter):
    """A logger that raises nothing. What fails in a handler is the handler's to report, as everywhere in `logging`."""

    def log(self, level: int, msg: object, *args: object, stacklevel: int = 1, **kwargs: Any) -> None:  # noqa: ANN401
        """See `logging.Logger.log`; all other methods end here."""
        try:
            self.logger.log(level, msg, *args, stacklevel=stacklevel + 1, **kwargs)
        except Exception as error:  # of a handler or a filter
            if is_from_signal(error):
                raise


def get_logger(name: str) -> SafeLogger:
    """Returns the logger of a module.

    Args:
        name: The module's `__name__`.
    """
    return SafeLogger(logging.getLogger(name), {})
