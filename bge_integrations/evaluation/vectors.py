"""Vectors of texts, each different text embedded once, and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import SettingsError

Floats = NDArray[np.float32]

Embed = Callable[[list[str]], Any]
"""Function from texts to a vector per text."""


def unique_vectors(embed: Embed, texts: list[str]) -> Floats:
    """Returns the vectors of texts.

    Args:
        embed: The function. It gets each different text once.
        texts: The texts.

    Returns:
        float32, shape [texts, dimension].

    Raises:
        SettingsError: The function returns something else than a finite vector for each text.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = np.asarray(embed(list(places)), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(places):
        raise SettingsError(
            f"The model gave an array of shape {vectors.shape} for {len(places)} texts; give a vector of the same "
            "length for each."
        )
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise SettingsError(f"The model gave NaN or infinity for the text {list(places)[int(np.argmin(is_finite))]!r}.")
    if len(places) == len(texts):
        return vectors
    spread: Floats = vectors[[places[text] for text in texts]]
    return spread
