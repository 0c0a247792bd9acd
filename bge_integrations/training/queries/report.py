"""What came of making questions: plain data that is shown in words, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bge_integrations.training.prose import counted, escaped, shown_in_markdown
from bge_integrations.training.queries.checks import REASONS, Reason
from bge_integrations.training.rows.data import TrainingRow

__all__ = ["Failed", "QueryReport", "Rejected", "Sample", "some_of_each", "spread"]

_WIDTH = 100
_SAMPLES = 5


@dataclass(frozen=True)
class Rejected:
    """A question that was refused, or an answer without questions.

    Attributes:
        query: The question; "" for an answer that can't be used.
        kind: The name of its kind; "" for an answer.
        passages: Ids of its passages.
        reason: Why it was refused.
        detail: What the reason was found by.
        rank: The rank of its passage, for the reason "rank"; `None`: after all that were looked at.
    """

    query: str
    kind: str
    passages: tuple[str, ...]
    reason: Reason
    detail: str
    rank: int | None = None

    def in_words(self) -> str:
        """Returns the question and the reason as a line of text."""
        said = repr(self.query) if self.query else "an answer"
        return f"{said} ({', '.join(self.passages)}): {REASONS[self.reason]}: {self.detail}"


@dataclass(frozen=True)
class Failed:
    """Passages that the chat model gave no answer for."""

    passages: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Sample:
    """A question to read, with its passages."""

    query: str
    kind: str
    passages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QueryReport:
    """What came of making questions.

    Attributes:
        llm: The chat model's name.
        encoder: The start model's name; `None` without one.
        settings: What was asked for.
        passages: The number of different passages.
        blank: Documents without text, which were left out.
        repeated: Documents with the text of an earlier one, which were left out.
        short: Passages that are too short to ask about.
        alone: Passages that were to begin a group, and have no other passage to go with.
        tasks: Prompts: one for each passage or group.
        kept: Prompts whose answers were there from an earlier run.
        calls: Calls of the chat model in this run.
        unusable: Answers that could not be used, so that the model was asked again.
        nothing: Prompts for which the model found nothing to ask.
        made: Questions that were made, by kind.
        data: Questions that stay, by kind.
        rejected: Questions that were refused, by reason.
        failed: Passages or groups that the model gave no answer for.
        covered: Passages that at least one question stays for.
        samples: Questions to read.
        refused: Refused questions to read.
        failures: The first failures.
        seconds: How long it took.
    """

    llm: str
    encoder: str | None
    settings: Mapping[str, Any]
    passages: int
    blank: int
    repeated: int
    short: int
    alone: int
    tasks: int
    kept: int
    calls: int
    unusable: int
    nothing: int
    made: Mapping[str, int]
    data: Mapping[str, int]
    rejected: Mapping[Reason, int]
    failed: int
    covered: int
    samples: Sequence[Sample]
    refused: Sequence[Rejected]
    failures: Sequence[Failed]
    seconds: float

    def sentences(self) -> Iterator[str]:
        """Yields what came of it, in sentences that belong together."""
        made, stay = sum(self.made.values()), sum(self.data.values())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.data.items())
        yield (
            f"{counted(self.passages, 'passage')}, {counted(self.tasks, 'prompt')}, {counted(self.calls, 'call')} of "
            f"{self.llm} in {self.seconds:,.1f} s. {counted(made, 'question')} came, {stay:,} stay"
            + (f" ({kinds})" if kinds else "")
            + f", for {counted(self.covered, 'passage')}."
        )
        if self.kept:
            yield f"The answers to {counted(self.kept, 'prompt')} were there from an earlier run."
        left = [
            *((f"{self.blank:,} without text",) if self.blank else ()),
            *((f"{self.repeated:,} with the text of an earlier one",) if self.repeated else ()),
            *((f"{self.short:,} too short to ask about",) if self.short else ()),
        ]
        if left:
            yield f"Documents that were left out: {', '.join(left)}."
        if self.alone:
            yield f"{counted(self.alone, 'passage')} had no other passage for a question of several passages."
        if self.nothing:
            yield f"For {counted(self.nothing, 'prompt')} the model found nothing to ask."
        if self.unusable:
            yield f"{counted(self.unusable, 'answer')} could not be used. Such a passage is asked about again."
        refused = [f"{count:,} × {REASONS[reason]}" for reason, count in self.rejected.items() if count]
        yield f"Refused: {'; '.join(refused) or 'nothing'}."
        if self.encoder is None:
            yield "No start model was given, so that nothing was compared by vectors and no passage was searched for."
        if self.failed:
            yield (
                f"The calls for {counted(self.failed, 'prompt')} failed, first with: "
                f"{self.failures[0].error.rstrip('.')}. "
                "Run it again with the same file for answers, and only these are asked."
            )

    def in_words(self) -> str:
        """Returns the report in sentences, in lines of at most 100 characters."""
        return "\n\n".join(textwrap.fill(part, _WIDTH, break_on_hyphens=False) for part in self.sentences())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return dataclasses.asdict(self)

    def to_markdown(self) -> str:
        """Returns the report with questions to read, as Markdown."""
        parts = ["# Questions made from documents", *map(escaped, self.sentences())]
        lines = [f"| {escaped(kind)} | {count:,} | {self.data.get(kind, 0):,} |" for kind, count in self.made.items()]
        parts.append("\n".join(["| kind | made | stay |", "|---|---|---|", *lines]))
        parts.append("## Questions to read")
        for sample in self.samples:
            texts = "\n".join(f"- {shown_in_markdown(text)}" for text in sample.passages)
            parts.append(f"**{escaped(sample.query)}** ({escaped(sample.kind)})\n\n{texts}")
        if self.refused:
            parts.append("## Refused")
            lines = [
                f"| {shown_in_markdown(one.query or 'an answer')} | {escaped(one.kind)} | {REASONS[one.reason]} | "
                f"{shown_in_markdown(one.detail)} |"
                for one in self.refused
            ]
            parts.append("\n".join(["| question | kind | reason | by |", "|---|---|---|---|", *lines]))
        return "\n\n".join(parts) + "\n"


def some_of_each(refused: Sequence[Rejected]) -> list[Rejected]:
    """Returns the first refused questions of each reason."""
    seen: Counter[Reason] = Counter()
    chosen = []
    for one in refused:
        seen[one.reason] += 1
        if seen[one.reason] <= _SAMPLES:
            chosen.append(one)
    return sorted(chosen, key=lambda one: list(REASONS).index(one.reason))


def spread(rows: Sequence[TrainingRow]) -> list[Sample]:
    """Returns questions of each kind, from all over the data."""
    of_kind: dict[str, list[TrainingRow]] = {}
    for row in rows:
        of_kind.setdefault(row.source, []).append(row)
    chosen = [
        its[place]
        for its in of_kind.values()
        for place in dict.fromkeys(len(its) * part // _SAMPLES for part in range(_SAMPLES))
    ]
    return [Sample(row.query, row.source, row.pos) for row in chosen]
