"""The docstrings of Python's standard library as a list of short passages.

Source files are read with `ast`, without an import. What is written in C is asked of the objects.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bge_integrations.errors import SettingsError

__all__ = ["MAX_CHARACTERS", "WITH_SOURCES", "Entry", "collect", "to_passage"]

WITH_SOURCES = "Use a Python that has the source files of its library: in Debian and Ubuntu, install libpython3-stdlib."
"""What to do where docstrings are missing."""

MAX_CHARACTERS = 500
"""About where a passage ends; the name before it comes on top."""

_MIN_WORDS = 3
_UNDERLINE = re.compile(r"[-=~*]{3,}")

_MODULES = """
argparse ast base64 bisect calendar collections configparser contextlib copy csv dataclasses difflib dis email.message
email.utils enum filecmp fileinput fnmatch fractions ftplib functools getopt getpass gettext glob graphlib gzip heapq
hmac html html.parser http.client http.cookiejar http.cookies http.server imaplib importlib importlib.util inspect io
ipaddress linecache locale logging logging.config logging.handlers mailbox mimetypes multiprocessing.pool
multiprocessing.process numbers operator optparse os pdb pickle pkgutil platform plistlib pprint profile queue random
re reprlib sched secrets selectors shelve shlex shutil signal smtplib socket socketserver ssl statistics string struct
subprocess sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc types typing
unittest.mock urllib.parse urllib.request urllib.robotparser uuid venv warnings weakref webbrowser
wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree xml.sax.saxutils xmlrpc.client xmlrpc.server zipfile
zoneinfo
"""
_DEFINED_IN = {
    **{name: name for name in _MODULES.split()},
    "asyncio": "asyncio.base_events asyncio.events asyncio.futures asyncio.locks asyncio.queues asyncio.runners "
    "asyncio.streams asyncio.subprocess asyncio.taskgroups asyncio.tasks asyncio.threads asyncio.timeouts",
    "collections.abc": "_collections_abc",
    "concurrent.futures": "concurrent.futures._base concurrent.futures.process concurrent.futures.thread",
    "datetime": "datetime _pydatetime",
    "decimal": "_pydecimal",
    "json": "json json.decoder json.encoder",
    "os.path": "posixpath genericpath",
    "pathlib": "pathlib pathlib._local",
    "unittest": "unittest.case unittest.loader unittest.suite",
}
"""Public modules, and those whose source files define what is in them; a Python lacks some."""

_IN_C = "builtins cmath collections functools gc io itertools math os pickle random re signal sys time unicodedata zlib"
"""Modules that do no harm when they are imported, and hold what is written in C."""

_Found = tuple[str, str, str]  # name, signature, docstring


@dataclass(frozen=True)
class Entry:
    """One documented thing of the standard library.

    Attributes:
        name: Qualified public name, such as `pathlib.Path.glob`; builtins have no prefix (`str.split`).
        signature: Parameters in brackets, or an empty string where there are none or they are not known.
        text: The passage to embed: the name, then the beginning of the docstring.
    """

    name: str
    signature: str
    text: str

    @property
    def summary(self) -> str:
        """The passage without the name, cut after its first sentence."""
        return re.split(r"(?<=[.!?])\s", self.text.removeprefix(f"{self.name}: "), maxsplit=1)[0]


@functools.cache
def collect() -> tuple[Entry, ...]:
    """Collect docstrings of the standard library of the running Python.

    Returns:
        Some thousand entries, sorted by name, no name and no passage twice. There are fewer where source files of the
        library are missing.

    Raises:
        SettingsError: There is none at all.
    """
    by_passage: dict[str, Entry] = {}
    names = set[str]()
    # Of one thing under two names (`random.choice`, `random.Random.choice`) the shorter name stays.
    for name, signature, doc in sorted([*_from_sources(), *_from_objects()], key=_preference):
        passage = to_passage(doc)
        if passage and name not in names and "._" not in f".{name}":
            names.add(name)
            by_passage.setdefault(passage, Entry(name, signature, f"{name}: {passage}"))
    if not by_passage:
        raise SettingsError(f"There is nothing to search: this Python has no docstrings. {WITH_SOURCES}")
    return tuple(sorted(by_passage.values(), key=lambda entry: entry.name))


def to_passage(doc: str) -> str:
    """Turn the first paragraphs of a docstring into running text, cut at the end of a paragraph or a sentence.

    Returns:
        At most `MAX_CHARACTERS`; an empty string if there are fewer than three words.
    """
    kept = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        line = " ".join(word for word in paragraph.split() if not _UNDERLINE.fullmatch(word))
        if not line or line.startswith(">>>"):
            continue
        if kept and len(kept) + len(line) > MAX_CHARACTERS:
            break
        kept = f"{kept} {line}" if kept else line
    if len(kept) > MAX_CHARACTERS:
        start = kept[:MAX_CHARACTERS]
        sentence = max(start.rfind(mark) for mark in (". ", "? ", "! "))
        kept = start[: sentence + 1] if sentence > MAX_CHARACTERS // 4 else start[: start.rfind(" ")]
    return kept if len(kept.split()) >= _MIN_WORDS else ""


def _preference(found: _Found) -> tuple[int, int, str]:
    return found[0].count("."), len(found[0]), found[0]


def _from_sources() -> Iterator[_Found]:
    """Yield what stands at the top level of source files, and in their classes."""
    root = Path(sysconfig.get_path("stdlib"))
    for public, modules in _DEFINED_IN.items():
        for module in modules.split():
            path = root.joinpath(*module.split("."))
            file = next(filter(Path.is_file, (path / "__init__.py", path.with_suffix(".py"))), None)
            yield from _defined(f"{public}.", ast.parse(file.read_bytes()).body if file else [])


def _defined(prefix: str, body: list[ast.stmt]) -> Iterator[_Found]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            own = list(_defined(f"{prefix}{node.name}.", node.body))
            initialisers = [signature for name, signature, _ in own if name.endswith(".__init__")]
            yield f"{prefix}{node.name}", (*initialisers, "")[0], ast.get_docstring(node) or ""
            yield from own
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            signature = _without_self(f"({ast.unparse(node.args)})")
            yield f"{prefix}{node.name}", signature, ast.get_docstring(node) or ""


def _from_objects() -> Iterator[_Found]:
    """Yield what the modules in `_IN_C` hold."""
    for module in _IN_C.split():
        prefix = "" if module == "builtins" else f"{module}."
        # What comes from elsewhere is only used here.
        homes = (module, f"_{module}", "io", "_io", "posix", "nt", None)
        for name, value in _named(importlib.import_module(module)):
            if getattr(value, "__module__", "") in homes:
                yield f"{prefix}{name}", *_said_of(value)
                for inner, member in _named(value) if isinstance(value, type) else ():
                    yield f"{prefix}{name}.{inner}", *_said_of(member)


def _named(holder: object) -> Iterator[tuple[str, object]]:
    """Yield functions, classes and descriptors, but no alias: OSError knows nothing of its name IOError."""
    return ((name, value) for name, value in vars(holder).items() if getattr(value, "__name__", "") == name)


def _said_of(value: object) -> tuple[str, str]:
    signature, doc = getattr(value, "__text_signature__", None) or "", value.__doc__
    return _without_self(" ".join(signature.split())), doc if isinstance(doc, str) else ""


def _without_self(signature: str) -> str:
    return re.sub(r"^\(\$?(self|cls|type|module)\b(, /)?(, )?", "(", signature)
