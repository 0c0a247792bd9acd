"""Loggers that never raise.

An application's handler may raise, and Python's own handlers raise if standard error is closed. Such an error must not
reach the threads that log here: they compute for many callers, or return a result to a caller.
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
    """A logger that raises nothing. A handler must report its own errors, as everywhere in `logging`."""

    def log(self, level: int, msg: object, *args: object, stacklevel: int = 1, **kwargs: Any) -> None:  # noqa: ANN401
        """See `logging.Logger.log`. All other methods call this one."""
        try:
            self.logger.log(level, msg, *args, stacklevel=stacklevel + 1, **kwargs)
        except Exception as error:  # from a handler or a filter
            if is_from_signal(error):
                raise


def get_logger(name: str) -> SafeLogger:
    """Returns the logger of a module, by the module's `__name__`."""
    return SafeLogger(logging.getLogger(name), {})
