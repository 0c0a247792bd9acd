"""How questions are made from documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bge_integrations.errors import SettingsError
from bge_integrations.training.queries.kinds import QuestionKind, read_kinds
from bge_integrations.training.rows.data import text_fault

__all__ = ["Language", "QuerySettings", "Together"]

Language = Literal["auto", "en", "zh"]
Together = Literal["auto", "document", "near"]

_LEAST = {
    **dict.fromkeys(("answers", "attempts", "concurrency", "copied_words", "rank"), 1),
    **dict.fromkeys(("examples_shown", "first_wait"), 0),
    **dict.fromkeys(("timeout", "longest_wait"), 0.001),
}


@dataclass(frozen=True, kw_only=True)
class QuerySettings:
    """How questions are made from documents.

    Attributes:
        kinds: How many questions of each kind a passage gets, by name or `QuestionKind`. 0.5: every second passage gets
            one. A kind of several passages counts the groups that begin with a passage.
        language: Language of the prompt. "auto": Chinese for passages in Chinese characters, else English, and the
            questions are in the language of the passage. "en" or "zh": the questions are in this language too.
        examples: Questions that users really asked. Some of them are in each prompt as examples of style. No question
            that is made may repeat one.
        examples_shown: The number of examples in a prompt. If there are more, the passage's text decides which.
        together: Which passages a question of several passages is about. "document": neighbours in a document. "near":
            the nearest ones by the encoder's vectors. "auto": neighbours, or the nearest where a passage has none.
        copied_words: A question is refused if it has so many words in a row from its passage. A character of a script
            without blanks counts as half a word.
        near: A question is refused if its cosine with an earlier question or an example is so high, by the encoder's
            vectors; `None`: only equal texts are. BGE models before v1.5 have narrow cosines: give them 0.95.
        rank: A question is kept if the encoder finds its passages within this rank; `None`: no such filter. The
            limit is wide, since a question that the start does not answer yet is worth training on.
        answers: Calls for a passage until an answer can be used.
        attempts: Calls for an answer, when a call fails for a reason that passes, such as a rate limit.
        concurrency: Calls that run at once. A sync function is called from as many threads.
        timeout: Seconds of a call, at most. A call in a thread can't be ended: it goes on unheard.
        first_wait: Seconds to wait after the first failed call; twice as many after each further one, at random between
            half and all of them. A time that the failure names is respected.
        longest_wait: Seconds of such a wait, at most.
        llm_name: A name for the chat model, on which kept answers depend; `None`: its class and its model's name.
    """

    kinds: Mapping[Any, float] = field(
        default_factory=lambda: {"question": 1, "keywords": 1, "task": 1, "several": 0.5}
    )
    language: Language = "auto"
    examples: Sequence[str] = ()
    examples_shown: int = 8
    together: Together = "auto"
    copied_words: int = 5
    near: float | None = 0.9
    rank: int | None = 20
    answers: int = 3
    attempts: int = 6
    concurrency: int = 4
    timeout: float = 120.0
    first_wait: float = 1.0
    longest_wait: float = 60.0
    llm_name: str | None = None

    def __post_init__(self) -> None:
        """Checks everything once.

        Raises:
            SettingsError: A value is out of range, unknown or no text.
        """
        self.wanted()
        for name, known in (("language", get_args(Language)), ("together", get_args(Together))):
            if getattr(self, name) not in known:
                raise SettingsError(f"{name}={getattr(self, name)!r} is unknown; choose one of {known}.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{name}={value} must be {least} or more.")
        if self.near is not None and not 0 < self.near <= 1:
            raise SettingsError(f"near={self.near} must be a cosine above 0, at most 1.")
        if isinstance(self.examples, str):
            raise SettingsError("examples is one text; give a list of questions.")
        for number, example in enumerate(self.examples):
            if fault := text_fault(example):
                raise SettingsError(f"examples[{number}] {fault}")

    def wanted(self) -> dict[QuestionKind, float]:
        """Returns the number of questions for a passage by kind."""
        return read_kinds(self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: the kinds by name, and of the examples their number."""
        kinds = {kind.name: number for kind, number in self.wanted().items()}
        return {**vars(self), "kinds": kinds, "examples": len(self.examples)}
