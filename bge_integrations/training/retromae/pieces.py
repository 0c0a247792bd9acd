"""Texts as token ids in files: each text once, cut into pieces that the model can read. Imports no torch.

Training reads any piece from the files when it is needed. So the texts need not fit into memory, the order of an epoch
is a full shuffle, and a run that is resumed reads the same pieces.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from bge_integrations.calls.progress import Progress
from bge_integrations.errors import TrainingDataError
from bge_integrations.training.retromae.texts import TextSource
from bge_integrations.training.retromae.tokens import Tokens

__all__ = ["Facts", "Pieces", "make_pieces"]

_FACTS, _IDS, _ENDS = "texts.json", "texts.ids", "texts.ends"
_SMALL = 1 << 16
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Facts:
    """What is known of the pieces.

    Attributes:
        texts: The number of texts.
        pieces: The number of pieces.
        tokens: Tokens of all pieces, with special tokens.
        cut: The number of texts that were too long for one piece.
        digest: Digest of the texts.
        dtype: Type of the ids in the file.
    """

    texts: int
    pieces: int
    tokens: int
    cut: int
    digest: str
    dtype: str


class Pieces:
    """Pieces by number."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        """Opens the files of a folder."""
        self.facts = facts
        self._ids = np.memmap(folder / _IDS, dtype=facts.dtype, mode="r")
        self._ends = np.memmap(folder / _ENDS, dtype=np.int64, mode="r")

    def __len__(self) -> int:
        """Returns the number of pieces."""
        return self.facts.pieces

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """Returns the token ids of a piece, with special tokens."""
        start = int(self._ends[number - 1]) if number else 0
        found: NDArray[np.int64] = self._ids[start : int(self._ends[number])].astype(np.int64)
        return found


def make_pieces(source: TextSource, tokens: Tokens, folder: Path, *, show_progress: bool) -> Pieces:
    """Writes the pieces of all texts into files, or takes those that are there already.

    Of processes that train together, one writes, and the others wait for it.

    Raises:
        TrainingDataError: A text is wrong, or there is none.
    """
    state = json.loads(json.dumps([source.state, tokens.identity, tokens.limit]))
    with FileLock(folder / "texts.lock"):
        known = _known(folder)
        if known is not None and source.state is not None and known["state"] == state:
            return Pieces(folder, Facts(**known["facts"]))
        own = {name: folder / f"{name}.{os.getpid()}" for name in (_IDS, _ENDS, _FACTS)}
        try:
            facts = _write(source, tokens, own[_IDS], own[_ENDS], show_progress=show_progress)
            own[_FACTS].write_text(json.dumps({"state": state, "facts": asdict(facts)}), encoding="utf-8")
            if known is None or Facts(**known["facts"]) != facts:  # equal files may be open in another process
                (folder / _FACTS).unlink(missing_ok=True)  # of other files from here on
                for name in (_IDS, _ENDS):
                    own[name].replace(folder / name)
            own[_FACTS].replace(folder / _FACTS)
        finally:
            for file in own.values():
                file.unlink(missing_ok=True)
        return Pieces(folder, facts)


def _known(folder: Path) -> dict[str, Any] | None:
    file = folder / _FACTS
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(source: TextSource, tokens: Tokens, ids_file: Path, ends_file: Path, *, show_progress: bool) -> Facts:
    dtype = np.dtype(np.uint16 if len(tokens.table.begins) <= _SMALL else np.int32)
    digest = blake2b(digest_size=16)
    texts = pieces = total = cut = 0
    with ExitStack() as stack:
        ids, ends = (stack.enter_context(file.open("wb")) for file in (ids_file, ends_file))
        progress = stack.enter_context(Progress(None, shown=show_progress, title="Tokenising"))
        for some in _batches(source):
            before = total
            for text in some:
                data = text.encode("utf-8")
                digest.update(len(data).to_bytes(8, "big") + data)
            for of_text in tokens.encode(some):
                made = list(tokens.pieces(of_text))
                lengths = [len(piece) for piece in made]
                ends.write((total + np.cumsum(lengths, dtype=np.int64)).tobytes())
                for piece in made:
                    ids.write(piece.astype(dtype).tobytes())
                pieces, total, cut = pieces + len(made), total + sum(lengths), cut + (len(made) > 1)
            texts += len(some)
            progress.add(len(some), total - before)
    if not pieces:
        raise TrainingDataError(f"{source.name} has no texts to train on. Give some thousand.")
    return Facts(texts, pieces, total, cut, digest.hexdigest(), dtype.name)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while some := list(islice(iterator, _TEXTS_AT_ONCE)):
        yield some
