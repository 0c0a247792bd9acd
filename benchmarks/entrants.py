"""What every contender gets, and what it is once it has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_integrations import BgeEncoder

BATCH = 32


@dataclass(frozen=True)
class Place:
    """Where a contender finds its model.

    Attributes:
        model: The folder that everybody loads.
        workdir: Where something made out of it, such as an ONNX graph, may be kept for the next run.
        device: Where it computes: "cpu", or a GPU such as "cuda:0".
    """

    model: Path
    workdir: Path
    device: str = "cpu"


@dataclass(frozen=True)
class Loaded:
    """A contender that is ready.

    Attributes:
        documents: Embeds texts; returns a vector each, as arrays or lists, whatever its users get.
        query: Embeds one query.
        adocuments: The same as `documents`, to be awaited, where there is such a method.
        aquery: The same as `query`, to be awaited.
        encoder: What computes, for contenders of this package.
    """

    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]
    adocuments: Callable[[list[str]], Any] | None = None
    aquery: Callable[[str], Any] | None = None
    encoder: BgeEncoder | None = None
