"""The file of a graph's weights, mapped into memory so that the memory can be given back."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class MappedFile:
    """The bytes of a file. They are in memory from their first use until `forget`, and again from their next use.

    The file may be deleted meanwhile, except on Windows.
    """

    def __init__(self, path: Path) -> None:
        """Maps a file.

        Raises:
            OSError: The file can't be read.
            ValueError: The file is empty.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def as_array(self) -> NDArray[np.uint8]:
        """Returns the bytes. Nobody may write to them, or use them after this object is gone.

        numpy takes them for writable, since OpenVINO accepts no others.
        """
        address = np.frombuffer(self._map, np.uint8).ctypes.data
        return np.ctypeslib.as_array((ctypes.c_uint8 * len(self._map)).from_address(address))

    def forget(self) -> None:
        """Gives the memory back to the system. It has no effect on Windows."""
        if sys.platform != "win32":
            self._map.madvise(mmap.MADV_DONTNEED)
