"""Other rows of a batch as examples before a query, as the authors of bge-en-icl trained it.

Paper: "Making Text Embedders Few-Shot Learners", https://arxiv.org/abs/2409.15700. Each query gets a number of examples
that is drawn anew, also none, so that the model is used with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence

from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.training.rows.batches import Epochs
from bge_integrations.training.rows.data import TrainingRow
from bge_integrations.training.rows.sampling import draw_examples
from bge_integrations.training.trainer.templates import QueryTemplates

__all__ = ["RowExamples"]

Shown = tuple[int, TrainingRow, str]
"""A row of a batch: its position in the data, the row, and the positive that was drawn."""

_QUERY_TOKENS, _RESPONSE_TOKENS = 64, 96
"""As the authors' options `example_query_max_len` and `example_passage_max_len`."""


class RowExamples:
    """Draws examples. The draw depends on the seed, the epoch, and the rows of the batch."""

    def __init__(self, templates: QueryTemplates, *, most: int, query_length: int, seed: int, epochs: Epochs) -> None:
        """Describes them.

        Args:
            templates: Of a model that takes examples.
            most: Examples of a query, at most. Each number up to it has the same chance.
            query_length: Tokens of a query with everything around it. There are fewer examples if they do not fit.
            seed: Of what is drawn.
            epochs: The current epoch.
        """
        self._templates = templates
        self._most = most
        self._length = query_length
        self._seed = seed
        self._epochs = epochs

    def of(self, batch: Sequence[Shown]) -> list[str]:
        """Returns the examples before each query of a batch. None of them has the query or an answer to it."""
        return [self._before(place, batch) for place in range(len(batch))]

    def _before(self, place: int, batch: Sequence[Shown]) -> str:
        index, row, _ = batch[place]
        around = self._templates.around(row.prompt)
        if not around.prefix:  # the row wants its query alone
            return ""
        others = [
            (other, positive)
            for _, other, positive in batch
            if other.query != row.query and positive not in row.pos and other.prompt != ""
        ]
        found = ""
        for chosen in draw_examples(len(others), self._seed, self._epochs.current, index, self._most):
            longer = found + self._text(*others[chosen])
            whole = Instruction(f"{longer}{around.prefix}{row.query}", around.suffix)
            if self._templates.tokens(whole) > self._length:
                break
            found = longer
        return found

    def _text(self, row: TrainingRow, positive: str) -> str:
        return self._templates.example(
            row.prompt, self._cut(row.query, _QUERY_TOKENS), self._cut(positive, _RESPONSE_TOKENS)
        )

    def _cut(self, text: str, tokens: int) -> str:
        alone = Instruction()
        return self._templates.fitting(text, alone, tokens + self._templates.tokens(alone))
