"""A model in the form that the fast engines need, loaded by a library or read from files."""

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
    """An encoder in float32, with everything needed to run it.

    Attributes:
        facts: The known properties of the model.
        shape: The encoder's shape, as in `facts`.
        tokenizer: The model's tokenizer.
        rows: The kind of output that an engine must compute.
        heads: The weights on top of the encoder, for rerankers and bge-m3.
        weights: The encoder's weights, float32, by the names in transformers' state dict.
    """

    facts: ModelFacts
    shape: EncoderShape
    tokenizer: TextTokenizer
    rows: Rows
    heads: Heads
    weights: Mapping[str, NDArray[np.float32]]


def rows_for_vectors(facts: ModelFacts) -> Rows:
    """Returns the kind of output that the vectors of a model need. The first row is enough for CLS pooling."""
    # If pooling leaves the instruction out, it takes the first row after the instruction, not the first row of all.
    return "cls" if facts.pooling == "cls" and not facts.pools_without_prompt else "tokens"
