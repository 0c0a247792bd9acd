"""Loads the contenders, and leaves out those that can't take part or give other vectors than the reference."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import REFERENCE, Contender, by_name
from benchmarks.entrants import Loaded, Place

LEAST_COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99, "int8": 0.9}
"""What a precision may cost before the vectors count as wrong ones. Random weights suffer most from int8."""

_MEMORY_FACTOR = 3
"""Times the size of the weights that must be free for one more: graphs are packed for both of two uses."""

_PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+)+[/\\]([\w.@+~-]+)")


@dataclass(frozen=True)
class Agreement:
    """How near a contender's vectors are to the reference's: cosines over documents and queries."""

    mean_cosine: float
    least_cosine: float


@dataclass
class Lineup:
    """Who is ready.

    Attributes:
        ready: Loaded contenders whose vectors are right, by name.
        agreement: How right they are.
        left_out: Why the others do not take part.
    """

    ready: dict[str, Loaded] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def assemble(contenders: Sequence[Contender], place: Place, documents: list[str], queries: list[str]) -> Lineup:
    """Loads contenders and checks what they compute.

    Args:
        contenders: Who wants to take part.
        place: Where the model is.
        documents: To check vectors on.
        queries: The same.
    """
    lineup = Lineup()
    expected = _vectors(_load(by_name(REFERENCE), place), documents, queries)
    gc.collect()  # sentence-transformers' models are reference cycles
    for contender in contenders:
        try:
            _require_memory(place)
            loaded = _load(contender, place)
            agreement = compare(_vectors(loaded, documents, queries), expected)
        except Exception as error:  # whatever a dozen libraries raise must not end the others' race
            lineup.left_out[contender.name] = reason(error)
            continue
        if agreement.least_cosine < LEAST_COSINE[contender.precision]:
            lineup.left_out[contender.name] = (
                f"gives other vectors than {REFERENCE}: least cosine {agreement.least_cosine:.4f}"
            )
            continue
        lineup.ready[contender.name] = loaded
        lineup.agreement[contender.name] = agreement
    return lineup


def compare(vectors: NDArray[np.float64], expected: NDArray[np.float64]) -> Agreement:
    """Compares vectors row by row; they need not be normalised.

    Raises:
        ValueError: There are more or fewer of them, or they are longer or shorter.
    """
    if vectors.shape != expected.shape:
        raise ValueError(f"vectors of shape {vectors.shape} where {REFERENCE} gives {expected.shape}")
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = np.einsum("td,td->t", vectors, expected) / norms
    return Agreement(float(cosines.mean()), float(cosines.min()))


def reason(error: BaseException) -> str:
    """Returns why somebody is left out, in one line that names no folder of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic puts its own heading above what went wrong.
    message = lines[2] if len(lines) > 2 and "validation error" in lines[0] else (lines or [""])[0]
    return f"{type(error).__name__}: " + _PATH.sub(r"…/\1", message)


def _load(contender: Contender, place: Place) -> Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about their own insides
        return contender.load(place)


def _vectors(loaded: Loaded, documents: list[str], queries: list[str]) -> NDArray[np.float64]:
    rows: list[Any] = [*loaded.documents(documents), *(loaded.query(query) for query in queries)]
    return np.array([np.asarray(row, dtype=np.float64) for row in rows])


def _require_memory(place: Place) -> None:
    needed = _MEMORY_FACTOR * sum(file.stat().st_size for file in place.model.glob("*.safetensors"))
    if place.device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(place.device)
    else:
        import psutil

        free = psutil.virtual_memory().available
    if free < needed:
        raise MemoryError(f"{free / 2**30:.1f} GiB are free, {needed / 2**30:.1f} GiB are wanted for one more")
