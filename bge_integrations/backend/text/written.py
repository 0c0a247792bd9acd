"""Texts as a server reads them: with the instruction, and cut to the limit where the server does not cut as we do.

The texts come with their numbers of tokens, so that the queue can make batches, but without ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bge_integrations.backend.text.pairs import Pair, PairTokenizer
from bge_integrations.backend.text.templates import Frame, fitting_part
from bge_integrations.backend.text.tokenizer import TokenizedTexts

_NO_IDS = np.empty(0, dtype=np.int32)


def write_within(frame: Frame, texts: Sequence[str], *, cuts_at: int | None) -> TokenizedTexts:
    """Writes texts with their instruction. Only the texts are cut, never the prefix or the suffix.

    Args:
        frame: What surrounds and limits the texts.
        texts: At least one text.
        cuts_at: Number of tokens to which the server cuts a longer text at its end. `None`: it does not cut.
    """
    tokenizer, prefix, suffix, max_length = frame.tokenizer, frame.prefix, frame.suffix, frame.max_length
    written = [f"{prefix}{text}{suffix}" for text in texts]
    full_lengths = tokenizer.count(written)
    # The server cuts between tokens, but a text can only be cut between characters. So the server cuts if it can.
    server_cuts = cuts_at is not None and max_length >= cuts_at and not suffix
    if not server_cuts:
        for index in np.flatnonzero(full_lengths > max_length).tolist():
            kept = fitting_part(tokenizer, prefix, texts[index], suffix, max_length)
            written[index] = f"{prefix}{kept}{suffix}"
    return TokenizedTexts(_NO_IDS, full_lengths, np.minimum(full_lengths, max_length), written=tuple(written))


def write_pairs(pairs: PairTokenizer, given: Sequence[Pair], max_length: int) -> TokenizedTexts:
    """Writes pairs, each query with its instruction. Pairs over the limit are cut as `PairTokenizer.tokenize` does.

    Args:
        pairs: The tokenizer of pairs.
        given: At least one pair.
        max_length: Maximum number of tokens per pair, special tokens included; at least `Share.least` of its `share`.
    """
    counted = pairs.tokenize(given, max_length)
    written = [(pairs.instruction + query, passage) for query, passage in given]
    for index in np.flatnonzero(counted.full_lengths > max_length).tolist():
        written[index] = pairs.cut(given[index], max_length)
    return TokenizedTexts(_NO_IDS, counted.full_lengths, counted.lengths, written=tuple(written))
