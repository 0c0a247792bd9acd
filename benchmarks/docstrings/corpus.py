"""The documentation of Python's standard library as a list of short passages, each under its public name."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

from benchmarks.docstrings.compiled import from_compiled
from benchmarks.docstrings.source import from_source, preference
from bge_integrations.cli.demo.corpus import MAX_CHARACTERS, WITH_SOURCES, to_passage
from bge_integrations.errors import SettingsError

__all__ = ["MAX_CHARACTERS", "Entry", "collect"]


@dataclass(frozen=True)
class Entry:
    """One documented thing of the standard library.

    Attributes:
        name: Qualified public name, such as `pathlib.Path.glob`; builtins have no prefix (`str.split`).
        text: The passage to embed: the name, then the beginning of the docstring.
    """

    name: str
    text: str


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
    for name, doc in itertools.chain(from_source(), from_compiled()):
        passage = to_passage(doc)
        if name in names or not passage:
            continue
        names.add(name)
        # One thing under two names (`random.choice`, `random.Random.choice`): the shorter name stays.
        key = (name.rpartition(".")[2], passage)
        if key not in best or preference(name) < preference(best[key].name):
            best[key] = Entry(name, f"{name}: {passage}")
    if not best:
        raise SettingsError(f"There is nothing to search: this Python has no docstrings. {WITH_SOURCES}")
    return tuple(sorted(best.values(), key=lambda entry: entry.name))
