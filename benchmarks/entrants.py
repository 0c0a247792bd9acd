"""What every contender gets, and what it is once it has loaded."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_integrations import BgeEncoder

BATCH = 32


class ElsewhereError(RuntimeError):
    """Something failed in another process. Its text is one line, which starts with the name of the error over there."""


def made_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Returns a folder, made if it is not there from an earlier run.

    Args:
        folder: Where it is.
        write: Is given the path of an empty folder, and fills it.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Moved to its place as a whole, so that a half-written one is never taken for a whole one.
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        write(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


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

    def made(self, kind: str, write: Callable[[Path], None]) -> Path:
        """Returns the folder of something made out of the model's weights, made if it is not there.

        Args:
            kind: What it is: a name for a folder.
            write: Is given the path of an empty folder, and fills it.
        """
        weights = self.model / "model.safetensors"
        identity = f"{weights.resolve()} {weights.stat().st_size} {weights.stat().st_mtime_ns}"
        return made_once(self.workdir / kind / hashlib.sha256(identity.encode()).hexdigest()[:16], write)


@dataclass(frozen=True)
class Loaded:
    """A contender that is ready.

    Attributes:
        documents: Embeds texts; returns a vector each, as arrays or lists, whatever its users get.
        query: Embeds one query.
        adocuments: The same as `documents`, to be awaited, where there is such a method.
        aquery: The same as `query`, to be awaited.
        encoder: What computes, for contenders of this package.
        hand_over: What the way to another process and back has cost so far, if there is one.
    """

    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]
    adocuments: Callable[[list[str]], Any] | None = None
    aquery: Callable[[str], Any] | None = None
    encoder: BgeEncoder | None = None
    hand_over: Callable[[], dict[str, float]] | None = None
