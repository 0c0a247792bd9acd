"""The combinations of models, precisions, instructions, outputs and rerankers that an evaluation runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.searchers import Output

__all__ = ["Combination", "combine"]

NONE = "none"
"""The word for no instruction, and for no reranker."""
DEFAULT = "default"
"""The word for the instruction that the model was trained with."""


@dataclass(frozen=True)
class Combination:
    """One row of the table.

    Attributes:
        model: Hub id or folder; `None`: the candidates of the data.
        precision: As the setting.
        instruction: `None`: the instruction that the model was trained with. `""`: no instruction.
        output: What is compared of bge-m3.
        reranker: Hub id or folder; `None`: no reranker.
    """

    model: str | None
    precision: str = "auto"
    instruction: str | None = None
    output: Output = "dense"
    reranker: str | None = None

    @property
    def searched(self) -> Combination:
        """The combination without its reranker."""
        return Combination(self.model, self.precision, self.instruction, self.output)


def combine(
    models: Sequence[str],
    precisions: Sequence[str],
    instructions: Sequence[str],
    outputs: Sequence[str],
    rerankers: Sequence[str],
) -> list[Combination]:
    """Returns every combination of what the options name, in their order.

    Args:
        models: Hub ids and folders; [] for the candidates of the data.
        precisions: Precisions; an element can hold several, with commas.
        instructions: "default", "none", or texts.
        outputs: Outputs of bge-m3; an element can hold several, with commas.
        rerankers: Hub ids and folders, and "none" for no reranker.

    Raises:
        SettingsError: Nothing is named, or an output is unknown.
    """
    if not models and all(reranker == NONE for reranker in rerankers):
        raise SettingsError(
            "No model is named. Give --model, or --reranker alone for data with candidates (query, pos and neg)."
        )
    known: tuple[Output, ...] = get_args(Output)
    for output in _split(outputs):
        if output not in known:
            raise SettingsError(f"--output {output} is unknown; choose one of {', '.join(known)}.")
    chosen_rerankers = [None if name == NONE else name for name in rerankers] or [None]
    if not models:
        return [Combination(None, reranker=name) for name in dict.fromkeys(chosen_rerankers) if name]
    chosen_instructions = [{DEFAULT: None, NONE: ""}.get(text, text) for text in instructions] or [None]
    chosen_outputs = [output for output in known if output in _split(outputs)] or ["dense"]
    chosen = itertools.product(
        models, _split(precisions) or ["auto"], chosen_instructions, chosen_outputs, chosen_rerankers
    )
    return [
        Combination(model, precision, instruction, output, reranker)
        for model, precision, instruction, output, reranker in dict.fromkeys(chosen)
    ]


def _split(given: Sequence[str]) -> list[str]:
    return [part.strip() for text in given for part in text.split(",") if part.strip()]
