"""Reads safetensors files into numpy, without torch.

A file has 8 bytes with the length of a JSON header, then the header, then the numbers of all tensors.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.checkpoint.plainness import NotPlainError

_LENGTH = 8
_TYPES: Mapping[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: it is the upper half of a float32
}


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in a file.

    Attributes:
        file: Path of the file.
        start: Offset of the tensor's first byte in the file.
        kind: Type in the header, such as "F32".
        shape: Length of each dimension.
    """

    file: Path
    start: int
    kind: str
    shape: tuple[int, ...]

    @property
    def is_floating_point(self) -> bool:
        """Whether it can be read as float32."""
        return self.kind in _TYPES

    def read(self) -> NDArray[np.float32]:
        """Returns its numbers in float32. A float32 tensor is mapped: its numbers are read from the file when used."""
        stored = np.memmap(self.file, _TYPES[self.kind], mode="r", offset=self.start, shape=self.shape)
        if self.kind == "BF16":
            return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.asarray(stored.astype(np.float32, copy=False))


class StoredWeights(Mapping[str, NDArray[np.float32]]):
    """The tensors of a model by name. Each access reads the tensor from its file."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Returns the tensors in all files of a model by name. It only reads the files' headers.

    Raises:
        NotPlainError: A header can't be read, or two files have a tensor of the same name.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _of_file(file):
            if name in found:
                raise NotPlainError(f"{name} is in {found[name].file.name} and in {file.name}")
            found[name] = tensor
    return found


def _of_file(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH), "little")
            if length > size:
                raise NotPlainError(f"{file.name} is damaged: its header has {length} bytes, and the file {size}")
            header = json.loads(opened.read(length))
        begin = _LENGTH + length
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            kind, shape, (start, stop) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
            if kind in _TYPES and (
                stop - start != prod(shape) * _TYPES[kind].itemsize or start < 0 or begin + stop > size
            ):
                raise NotPlainError(f"{file.name} is damaged: {name} has {stop - start} bytes for the shape {shape}")
            yield name, StoredTensor(file, begin + start, kind, shape)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise NotPlainError(f"the header of {file.name} can't be read: {error}") from error
