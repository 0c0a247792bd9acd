"""The docstrings of what is written in C, asked of the objects themselves.

Only of modules that are harmless to import; for everything else see `source.py`.
"""

from __future__ import annotations

import atexit
import binascii
import builtins
import cmath
import collections
import csv
import functools
import gc
import getpass
import hashlib
import inspect
import io
import itertools
import math
import os
import pickle
import random
import re
import signal
import socket
import struct
import sys
import time
import unicodedata
import zlib
from collections.abc import Iterator
from types import ModuleType

from benchmarks.docstrings.source import Found

__all__ = ["from_compiled"]

_COMPILED = (
    *(atexit, binascii, builtins, cmath, collections, csv, functools, gc, getpass, hashlib, io, itertools, math),
    *(os, pickle, random, re, signal, socket, struct, sys, time, unicodedata, zlib),
)


def from_compiled() -> Iterator[Found]:
    """Yield what the modules in `_COMPILED` hold that is written in C (or, in `random`, bound at import)."""
    for module in _COMPILED:
        prefix = "" if module is builtins else f"{module.__name__}."
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not _belongs_to(value, module):
                continue
            if isinstance(value, type):
                if value.__name__ != name:  # an alias: IOError is OSError
                    continue
                yield f"{prefix}{name}", value.__doc__ or ""
                for method, member in sorted(vars(value).items()):
                    if not method.startswith("_") and (inspect.isroutine(member) or inspect.isdatadescriptor(member)):
                        yield f"{prefix}{name}.{method}", member.__doc__ or ""
            elif inspect.isroutine(value):
                yield f"{prefix}{name}", value.__doc__ or ""


def _belongs_to(value: object, module: ModuleType) -> bool:
    homes = {module.__name__, f"_{module.__name__}", "posix", "nt", None}
    return module is builtins or getattr(value, "__module__", None) in homes
