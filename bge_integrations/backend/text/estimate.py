"""Estimated token counts, for a model on a server whose tokenizer is not on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations.backend.text.backends import Encoded, Sample

# A token of English has about four letters, and a Chinese character of three bytes is about one token.
_BYTES_A_TOKEN = 3


class EstimateBackend:
    """Counts one token for every three bytes of a text. The ids are all 0: they only have a number."""

    word_marks = 0
    splits_special_tokens = False

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoded]]:
        """See `TokenizerBackend.encode`."""
        for index, text in enumerate(texts):
            yield index, _Count(-(-len(text.encode()) // _BYTES_A_TOKEN))

    def sample(self) -> Sample:
        """See `TokenizerBackend.sample`."""
        return _sample([True, False, True])

    def sample_pair(self) -> Sample:
        """See `TokenizerBackend.sample_pair`."""
        return _sample([True, False, True, False, True])

    def token(self, _: int) -> None:
        """See `TokenizerBackend.token`."""
        return

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `TokenizerBackend.spans`."""
        return [(start, start + 1) for start in range(len(text))]

    def normalized(self, text: str) -> str:
        """See `TokenizerBackend.normalized`."""
        return text

    def to_json(self) -> None:
        """See `TokenizerBackend.to_json`."""
        return


@dataclass(frozen=True)
class _Count:
    """See `Encoded`."""

    count: int

    @property
    def ids(self) -> list[int]:
        return [0] * self.count

    def __len__(self) -> int:
        return self.count


def _sample(is_special: list[bool]) -> Sample:
    return Sample([0] * len(is_special), np.array(is_special, dtype=bool), [0] * len(is_special))
