"""The kinds of question that are asked for: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_integrations.errors import SettingsError
from bge_integrations.texts import is_text, shortened

__all__ = ["KINDS", "QuestionKind", "read_kinds"]


@dataclass(frozen=True, kw_only=True)
class QuestionKind:
    """A kind of question.

    Attributes:
        name: Its name, which is the `source` of its rows.
        english: What the prompt asks for, in English.
        chinese: The same in Chinese.
        passages: The number of passages that the answer needs.
        least: Words of a question, at least. A character of a script without blanks counts as half a word.
        most: Words of a question, at most.
    """

    name: str
    english: str
    chinese: str
    passages: int = 1
    least: float = 2
    most: float = 40


KINDS: Mapping[str, QuestionKind] = {
    kind.name: kind
    for kind in (
        QuestionKind(
            name="question",
            english="a question in the words of a person who has the problem and does not know the passage's terms",
            chinese="一个遇到问题、但不熟悉文中术语的人会怎样用自己的话提问",
            least=3,
        ),
        QuestionKind(
            name="keywords",
            english="two to six keywords as people type them into a search box, not a sentence",
            chinese="人们在搜索框里输入的两到六个关键词，不要写成句子",
            least=1,
            most=12,
        ),
        QuestionKind(
            name="task",
            english='what somebody wants to get done, such as "stop a program that hangs"; no question mark',
            chinese="某人想完成的事情，例如“停止一个卡住的程序”，不要写成问句",
            least=2,
        ),
        QuestionKind(
            name="several",
            english="a question that needs all of these passages: none of them alone is enough for the answer",
            chinese="需要同时读完所有这些段落才能回答的问题：任何一段都不够",
            passages=2,
            least=4,
            most=60,
        ),
    )
}
"""By name: a person's words, keywords, a task, and a question that several passages answer together."""


def read_kinds(kinds: Mapping[Any, Any]) -> dict[QuestionKind, float]:
    """Returns the kinds with the number of questions for each passage.

    Args:
        kinds: By kind, or the name of one of `KINDS`, how many questions a passage gets. 0.5: every second passage gets
            one.

    Raises:
        SettingsError: A name is unknown or there twice, or a number is negative, or nothing is asked for.
    """
    found: dict[QuestionKind, float] = {}
    for key, number in kinds.items():
        kind = KINDS.get(key) if is_text(key) else key
        if not isinstance(kind, QuestionKind):
            raise SettingsError(
                f"kinds has {shortened(key)}, which is unknown; take {', '.join(map(repr, KINDS))}, or a QuestionKind."
            )
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
            raise SettingsError(f"kinds[{kind.name!r}]={number!r} must be a number of questions, 0 or more.")
        if any(kind.name == other.name for other in found):
            raise SettingsError(f"kinds has {kind.name!r} twice. Give each kind a name of its own.")
        if kind.passages < 1:
            raise SettingsError(f"kinds[{kind.name!r}] has passages={kind.passages}; it must be 1 or more.")
        if number:
            found[kind] = number
    if not found:
        raise SettingsError("kinds asks for no question; give at least one kind a number above 0.")
    return found
