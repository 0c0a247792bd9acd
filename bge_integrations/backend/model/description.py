"""A model as the fast engines need it, whether a library loaded it or its files alone were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import Rows
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Heads
from bge_integrations.backend.text.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Description:
    """An encoder in float32, with all that is needed to run it.

    Attributes:
        facts: What is known of it.
        shape: The encoder's shape, as in `facts`.
        tokenizer: Its tokenizer.
        rows: What an engine has to give for a text.
        heads: The weights on top of the encoder, for rerankers and bge-m3.
        weights: The encoder's weights by the names in transformers' state dict; float32.
    """

    facts: ModelFacts
    shape: EncoderShape
    tokenizer: TextTokenizer
    rows: Rows
    heads: Heads
    weights: Mapping[str, NDArray[np.float32]]


def rows_for_vectors(facts: ModelFacts) -> Rows:
    """Returns what an engine has to give for the vectors of a model: its first row is enough for CLS pooling."""
    # The first row that is left once the instruction is left out, is not the first of all.
    return "cls" if facts.pooling == "cls" and not facts.pools_without_prompt else "tokens"
