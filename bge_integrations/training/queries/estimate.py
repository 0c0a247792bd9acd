"""What making questions will take, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_integrations.training.prose import counted
from bge_integrations.training.queries.prompts import Task
from bge_integrations.training.queries.settings import QuerySettings

__all__ = ["Estimate", "estimate", "tokens_of"]

_CHARACTERS_OF_A_TOKEN = 4.0
_WIDE_FROM = 0x2E80
"""The first code point of Chinese and Japanese characters. Before it are alphabets."""
_WIDE_TOKENS = 0.7
"""Tokens of a Chinese character, about; tokenizers of chat models differ."""
_TOKENS_OF_A_QUESTION = 30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What making questions will take. Tokens are approximate: four characters of an alphabet each.

    Attributes:
        calls: Calls of the chat model, if every answer can be used.
        most_calls: Calls if no answer can be used; failed calls not counted.
        kept: Prompts whose answers are there from an earlier run.
        questions: Questions that are asked for in these calls.
        characters: Characters of the prompts.
        tokens_in: Tokens of the prompts, about.
        tokens_out: Tokens of the answers, about; what a model thinks before it answers is not counted.
    """

    calls: int
    most_calls: int
    kept: int
    questions: int
    characters: int
    tokens_in: int
    tokens_out: int

    def in_words(self) -> str:
        """Returns the figures in a sentence."""
        kept = f"; the answers to {counted(self.kept, 'prompt')} are there already" if self.kept else ""
        return (
            f"{counted(self.calls, 'call')} of the chat model (at most {self.most_calls:,}) for "
            f"{counted(self.questions, 'question')}: about {self.tokens_in:,} tokens in ({self.characters:,} "
            f"characters) and {self.tokens_out:,} tokens out{kept}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return asdict(self)


def estimate(tasks: Sequence[Task], total: int, settings: QuerySettings) -> Estimate:
    """Sums up what will be asked.

    Args:
        tasks: What is still to be asked.
        total: The number of all prompts, those with kept answers included.
        settings: What is asked for.
    """
    questions = sum(sum(task.wanted.values()) for task in tasks)
    return Estimate(
        calls=len(tasks),
        most_calls=len(tasks) * settings.answers,
        kept=total - len(tasks),
        questions=questions,
        characters=sum(len(task.prompt) for task in tasks),
        tokens_in=sum(tokens_of(task.prompt) for task in tasks),
        tokens_out=questions * _TOKENS_OF_A_QUESTION,
    )


def tokens_of(text: str) -> int:
    """Returns about how many tokens a text is for a chat model."""
    wide = sum(ord(character) >= _WIDE_FROM for character in text)
    return round((len(text) - wide) / _CHARACTERS_OF_A_TOKEN + wide * _WIDE_TOKENS)
