"""The documentation of Python's standard library as a list of short passages.

The two modules that find the docstrings (`source.py`, `compiled.py`) need nothing but the standard library.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from dataclasses import dataclass

from bge_integrations.cli.demo.compiled import from_compiled
from bge_integrations.cli.demo.source import from_source, preference
from bge_integrations.errors import SettingsError

__all__ = ["MAX_CHARACTERS", "WITH_SOURCES", "Entry", "collect"]

WITH_SOURCES = (
    "For the whole documentation use a Python whose standard library has its source files, which some packages for "
    "containers and embedded systems leave out; in Debian and Ubuntu the package libpython3-stdlib holds them."
)
"""What to do where docstrings are missing."""

MAX_CHARACTERS = 500
"""About where a passage ends; the name before it comes on top."""

_MIN_WORDS = 3
_UNDERLINE = re.compile(r"[-=~*]{3,}")


@dataclass(frozen=True)
class Entry:
    """One documented thing of the standard library.

    Attributes:
        name: Qualified public name, such as `pathlib.Path.glob`; builtins have no prefix (`str.split`).
        kind: "module", "class", "function" or "method" (properties included).
        signature: Parameters in brackets, or an empty string where there are none or they are not known.
        text: The passage to embed: the name, then the beginning of the docstring.
    """

    name: str
    kind: str
    signature: str
    text: str

    @property
    def summary(self) -> str:
        """The passage without the name, cut after its first sentence."""
        return re.split(r"(?<=[.!?])\s", self.text.removeprefix(f"{self.name}: "), maxsplit=1)[0]


@functools.cache
def collect() -> tuple[Entry, ...]:
    """Collect the documentation of the standard library of the running Python.

    Returns:
        Several thousand entries, sorted by name, no name and no passage twice. There are fewer where source files of
        the library are missing.

    Raises:
        SettingsError: There is none at all.
    """
    best: dict[tuple[str, str], Entry] = {}
    names: set[str] = set()
    for name, kind, signature, doc in itertools.chain(from_source(), from_compiled()):
        passage = _passage(doc)
        if name in names or len(passage.split()) < _MIN_WORDS:
            continue
        names.add(name)
        # One thing under two names (`random.choice`, `random.Random.choice`): the shorter name stays.
        key = (name.rpartition(".")[2], passage)
        if key not in best or preference(name) < preference(best[key].name):
            best[key] = Entry(name, kind, signature, f"{name}: {passage}")
    if not best:
        raise SettingsError(f"There is nothing to search: this Python has no docstrings. {WITH_SOURCES}")
    return tuple(sorted(best.values(), key=lambda entry: entry.name))


def _passage(doc: str) -> str:
    """Turn the first paragraphs of a docstring into running text, cut at the end of a paragraph or a sentence."""
    kept = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        line = " ".join(word for word in paragraph.split() if not _UNDERLINE.fullmatch(word))
        if not line or line.startswith(">>>"):
            continue
        if kept and len(kept) + len(line) > MAX_CHARACTERS:
            break
        kept = f"{kept} {line}" if kept else line
    if len(kept) <= MAX_CHARACTERS:
        return kept
    start = kept[:MAX_CHARACTERS]
    sentence = max(start.rfind(mark) for mark in (". ", "? ", "! "))
    return start[: sentence + 1] if sentence > MAX_CHARACTERS // 4 else start[: start.rfind(" ")]
