"""The check that a model has an embedding for all that it is asked to look up.

A tokenizer may know more tokens than the model: some were added to it, and the model was not resized. Engines differ in
what they do then. OpenVINO computes with zeros, so that texts of different tokens get equal vectors; torch fails.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.text.tokenizer import TextTokenizer, TokenizedTexts


class Missing(NamedTuple):
    """What a text needs and the model lacks.

    Attributes:
        text: The position of the first such text.
        what: The token or type, and what to do about it, as the end of a sentence after "… has".
    """

    text: int
    what: str


def missing_embedding(tokens: TokenizedTexts, facts: ModelFacts, tokenizer: TextTokenizer) -> Missing | None:
    """Finds the first text that has a token without an embedding.

    Args:
        tokens: Texts, or pairs of them, as they go to the model.
        facts: What is known of the model.
        tokenizer: The model's.

    Returns:
        What is missing; None if nothing is.
    """
    if facts.word_rows is not None and len(tokens.ids) and tokens.ids.max() >= facts.word_rows:
        place = int(np.argmax(tokens.ids >= facts.word_rows))
        id_ = int(tokens.ids[place])
        return Missing(
            int(np.searchsorted(np.cumsum(tokens.lengths), place, side="right")),
            f"the token {tokenizer.token(id_)!r} with the id {id_}, but the model has embeddings for the ids below "
            f"{facts.word_rows} only. Tokens were added to the tokenizer and not to the model: call "
            "`model.resize_token_embeddings(len(tokenizer))` and train the new rows, or save the tokenizer again "
            "without these tokens.",
        )
    if tokens.first_lengths is not None and facts.type_rows is not None and facts.second_type >= facts.type_rows:
        first = int(tokens.first_lengths[0])
        id_ = int(tokens.ids[min(first, len(tokens.ids) - 1)])
        return Missing(
            0,
            f"the token {tokenizer.token(id_)!r} of token type {facts.second_type} (token_type_ids), but the model has "
            f"embeddings for {facts.type_rows} type(s) only (type_vocab_size in config.json). Take 'token_type_ids' "
            "out of model_input_names in its tokenizer_config.json if it was trained without them, or save it again "
            "with the tokenizer that it was trained with.",
        )
    return None


def texts_with_embeddings(tokens: TokenizedTexts, facts: ModelFacts) -> NDArray[np.int64]:
    """Returns the positions of the texts whose tokens all have an embedding, in their order."""
    if facts.word_rows is None:
        return np.arange(len(tokens.lengths))
    lacking = np.add.reduceat(tokens.ids >= facts.word_rows, np.cumsum(tokens.lengths) - tokens.lengths)
    return np.flatnonzero(lacking == 0)
