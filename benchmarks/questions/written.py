"""Questions to train on: a language model wrote them from single entries, in the words of users.

It saw no labelled question. No entry here answers a labelled question, and no question here is nearly one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bge_integrations.training import TrainingRow

__all__ = ["written_rows"]

_FILE = Path(__file__).with_name("written.tsv")
"""On each line the qualified name of an entry, a tab, and a question that it answers."""


def written_rows(corpus: Mapping[str, str]) -> list[TrainingRow]:
    """Returns the questions whose entry is in a corpus, each with its passage.

    Args:
        corpus: Passages by qualified name. Some entries are not in every version of Python.
    """
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return [
        TrainingRow(query=question, pos=(corpus[name],), source="written") for name, question in pairs if name in corpus
    ]
