"""Distinguishes errors of signal handlers from errors of the code that they interrupt."""

from __future__ import annotations

import signal
import threading
from functools import partial
from traceback import walk_tb
from types import CodeType, FunctionType, MethodType


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal handler raised this error. Code in the main thread that swallows errors must not swallow it.

    For example, a handler of SIGALRM may end a call after some time: it raises in the middle of any running code.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_code in handlers for frame in frames)


def _code_of(function: object) -> CodeType | None:
    while isinstance(function, partial):
        function = function.func
    if not isinstance(function, (FunctionType, MethodType)):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None
