"""What a labelled question is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["KINDS", "Kind", "Question", "label"]

Kind = Literal["how-to", "symptom", "contrast", "analogy", "keyword", "identifier", "foreign"]
"""How a question is put.

- how-to: a task or a fact that is wanted, in a programmer's own words
- symptom: what goes wrong, not what would help
- contrast: this and not that, where the entry for that is close by
- analogy: the name that the thing has in another language or system
- keyword: a few words as typed into a search box
- identifier: names of Python's own, which a search for words finds too
- foreign: German, French, Spanish or Chinese
"""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind, in the order in which reports list them."""


@dataclass(frozen=True)
class Question:
    """A question to the documentation.

    Attributes:
        text: The question as it would be asked.
        answers: Qualified names of the entries that answer it, any of which counts as a hit.
        kind: How it is put.
    """

    text: str
    answers: frozenset[str]
    kind: Kind


def label(kind: Kind, answers: Mapping[str, str]) -> tuple[Question, ...]:
    """Make questions of one kind.

    Args:
        kind: The kind of all of them.
        answers: By question the names that answer it, separated by blanks.
    """
    return tuple(Question(text, frozenset(names.split()), kind) for text, names in answers.items())
