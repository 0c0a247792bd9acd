"""Distinguishes errors of signal handlers from errors of the code that they interrupt, and keeps handlers callable."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Gives this thread its stack for signal handlers back, if the code inside has set another one.

    OpenVINO's plugin for CPUs sets a stack of its own in the thread that first uses it (`SigAltStackSetup` in
    intel_cpu/src/plugin.cpp). With the plugin that stack is freed, perhaps by another thread, and then it stays set.
    Python's handlers run on that stack: the next signal, such as Ctrl-C, ended the process with SIGSEGV. Calls in the
    main thread are those under gevent and eventlet, and those of users of OpenVINO.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    is_known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if is_known:
            # The system refuses a stack that is too small for what the plugin has switched on (AMX). Then the new one
            # stays.
            libc.sigaltstack(ctypes.byref(before), None)


def _code_of(function: object) -> CodeType | None:
    while isinstance(function, partial):
        function = function.func
    if not isinstance(function, (FunctionType, MethodType)):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None
