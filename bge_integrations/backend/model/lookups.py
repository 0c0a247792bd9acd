"""The check that a model has an embedding for every token.

A tokenizer may know more tokens than the model, if tokens were added and the model was not resized. Then torch fails,
but OpenVINO computes with zeros, so texts with different tokens get equal vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.text.tokenizer import TextTokenizer, TokenizedTexts


class Missing(NamedTuple):
    """A missing embedding.

    Attributes:
        text: Position of the first text that needs it.
        what: The token or token type, and the fix, as the end of a sentence after "… has".
    """

    text: int
    what: str


def missing_embedding(tokens: TokenizedTexts, facts: ModelFacts, tokenizer: TextTokenizer) -> Missing | None:
    """Returns the missing embedding of the first text, or pair, that has one; `None` if all embeddings are there."""
    if facts.word_rows is not None and len(tokens.ids) and tokens.ids.max() >= facts.word_rows:
        place = int(np.argmax(tokens.ids >= facts.word_rows))
        id_ = int(tokens.ids[place])
        return Missing(
            int(np.searchsorted(np.cumsum(tokens.lengths), place, side="right")),
            f"the token {tokenizer.token(id_)!r} with the id {id_}, but the model has embeddings only for ids below "
            f"{facts.word_rows}. Tokens were added to the tokenizer but not to the model: call "
            "`model.resize_token_embeddings(len(tokenizer))` and train the new rows, or save the tokenizer again "
            "without these tokens.",
        )
    if tokens.first_lengths is not None and facts.type_rows is not None and facts.second_type >= facts.type_rows:
        first = int(tokens.first_lengths[0])
        id_ = int(tokens.ids[min(first, len(tokens.ids) - 1)])
        return Missing(
            0,
            f"the token {tokenizer.token(id_)!r} of token type {facts.second_type} (token_type_ids), but the model has "
            f"embeddings for only {facts.type_rows} type(s) (type_vocab_size in config.json). If the model was trained "
            "without token types, remove 'token_type_ids' from model_input_names in its tokenizer_config.json. "
            "Otherwise save the model again with the tokenizer of its training.",
        )
    return None


def texts_with_embeddings(tokens: TokenizedTexts, facts: ModelFacts) -> NDArray[np.int64]:
    """Returns the positions of the texts whose tokens all have an embedding, in ascending order."""
    if facts.word_rows is None:
        return np.arange(len(tokens.lengths))
    lacking = np.add.reduceat(tokens.ids >= facts.word_rows, np.cumsum(tokens.lengths) - tokens.lengths)
    return np.flatnonzero(lacking == 0)
