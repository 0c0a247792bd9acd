"""What stands around the queries of a model that is trained: instructions, templates and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.text.templates import fitting_start, share_of
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue import ModelSpec
from bge_integrations.catalogue.instructions import Instruction, example_text, resolve_instruction
from bge_integrations.settings import EncoderSettings, Example

__all__ = ["QueryTemplates"]


@dataclass(frozen=True, kw_only=True)
class QueryTemplates:
    """The text around a query, for each prompt that a row can have.

    Attributes:
        settings: The user's settings of the model.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        facts: Facts of the model, with the prompts in its files.
        tokenizer: The model's tokenizer.
        max_length: Tokens that the model reads, at most.
    """

    settings: EncoderSettings
    spec: ModelSpec | None
    facts: ModelFacts
    tokenizer: TextTokenizer
    max_length: int

    def around(self, prompt: str | None) -> Instruction:
        """Returns the text before and after a query.

        Args:
            prompt: The prompt of its row. An instruct model has a template, and takes it as the task. `None`: the
                model's own instruction. `""`: nothing.
        """
        settings, spec, facts = self.settings, self.spec, self.facts
        is_task = bool(prompt) and spec is not None and bool(spec.query_template)
        return resolve_instruction(
            "query",
            explicit=settings.query_instruction if prompt is None else None if is_task else prompt,
            task=prompt if is_task else settings.task,
            spec=spec,
            saved_prompts=facts.prompts,
            default_prompt_name=facts.default_prompt_name,
            recognized_by=facts.recognized_by,
            examples=cast("Sequence[Example] | None", settings.examples),
        )

    @property
    def takes_examples(self) -> bool:
        """Whether the model knows how examples stand before a query."""
        return self.spec is not None and bool(self.spec.example_template)

    def example(self, prompt: str | None, query: str, answer: str) -> str:
        """Returns an example as it stands before a query, for a model that takes examples."""
        if self.spec is None:
            return ""
        task = prompt or self.settings.task or self.spec.default_task or ""
        return example_text(self.spec, (task, query, answer))

    def fitting(self, query: str, around: Instruction, length: int) -> str:
        """Returns as much of the start of a query as fits between the text around it."""
        return fitting_start(self.tokenizer, around.prefix, query, around.suffix, min(length, self.max_length))

    def tokens(self, around: Instruction) -> int:
        """Returns the tokens of the text around a query, special tokens included."""
        share = share_of(self.tokenizer, around.prefix, around.suffix)
        return share.instruction_tokens + share.fixed_tokens
