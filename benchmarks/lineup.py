"""Loads the contenders, and leaves out those that can't take part or give other vectors than the reference."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import REFERENCE, Contender, by_name
from benchmarks.entrants import ElsewhereError, Loaded, Place

Rows = Sequence[NDArray[np.float64]] | NDArray[np.float64]

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


def assemble(
    contenders: Sequence[Contender],
    place: Place,
    documents: list[str],
    queries: list[str],
    reference: Contender | None = None,
    rows_of: Callable[[Any], Iterable[Any]] = iter,
) -> Lineup:
    """Loads contenders and checks what they compute.

    Args:
        contenders: Who wants to take part.
        place: Where the model is.
        documents: To check vectors on.
        queries: The same.
        reference: Whose vectors are the right ones; `REFERENCE` unless given.
        rows_of: Makes vectors of what `documents` of a contender gives.
    """
    lineup = Lineup()
    reference = reference or by_name(REFERENCE)

    def vectors(loaded: Loaded) -> list[NDArray[np.float64]]:
        rows = [
            *rows_of(loaded.documents(documents)),
            *(row for query in queries for row in rows_of([loaded.query(query)])),
        ]
        return [np.asarray(row, np.float64) for row in rows]

    expected = vectors(_load(reference, place))
    gc.collect()  # sentence-transformers' models are reference cycles
    for contender in contenders:
        try:
            _require_memory(place)
            loaded = _load(contender, place)
            agreement = compare(vectors(loaded), expected, reference.name)
        except Exception as error:  # whatever a dozen libraries raise must not end the others' race
            lineup.left_out[contender.name] = reason(error)
            continue
        if not agreement.least_cosine >= LEAST_COSINE[contender.precision]:  # nan is not
            lineup.left_out[contender.name] = (
                f"gives other vectors than {reference.name}: least cosine {agreement.least_cosine:.4f}"
            )
            continue
        lineup.ready[contender.name] = loaded
        lineup.agreement[contender.name] = agreement
    return lineup


def compare(vectors: Rows, expected: Rows, reference: str = REFERENCE) -> Agreement:
    """Compares vectors one by one; they need not be normalised.

    Raises:
        ValueError: There are more or fewer of them, or some are longer or shorter.
    """
    lengths, right = ([len(row) for row in rows] for rows in (vectors, expected))
    if lengths != right:
        raise ValueError(f"vectors of lengths {lengths[:3]}… where {reference} gives {right[:3]}…")
    cosines = [
        row @ other / np.linalg.norm(row) / np.linalg.norm(other) for row, other in zip(vectors, expected, strict=True)
    ]
    return Agreement(float(np.mean(cosines)), float(np.min(cosines)))


def reason(error: BaseException) -> str:
    """Returns why somebody is left out, in one line that names no folder of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic puts its own heading above what went wrong.
    message = lines[2] if len(lines) > 2 and "validation error" in lines[0] else (lines or [""])[0]
    name = "" if isinstance(error, ElsewhereError) else f"{type(error).__name__}: "
    return name + _PATH.sub(r"…/\1", message)


def _load(contender: Contender, place: Place) -> Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about their own insides
        return contender.load(place)


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
