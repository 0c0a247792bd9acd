"""Errors of too little memory, and tensors that are too large for a device. Imports no torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import EngineOutOfMemory, TokenBatch
from bge_integrations.errors import EngineFailedError

__all__ = ["TensorLimit", "TextTooLong", "is_out_of_memory", "memory_errors", "rows_of_parts"]

# Messages of plain RuntimeErrors. torch has a class of its own only for CUDA's allocator. Other sources:
# c10/core/impl/alloc_cpu.cpp ("can't allocate memory", on Windows "not enough memory"),
# aten/src/ATen/mps/MPSAllocator.mm ("MPS backend out of memory", "Invalid buffer size" for a single too large tensor),
# cuBLAS and cuDNN ("CUBLAS_STATUS_ALLOC_FAILED"), OpenVINO's intel_cpu/src/cpu_memory.cpp ("Failed to allocate … bytes
# of memory"), oneDNN ("Could not allocate memory"), and the C++ exception ("std::bad_alloc", from Microsoft's library
# "bad allocation").
_SAID = re.compile(
    r"out of memory|not enough memory|(?:can't|could not|cannot|unable to) allocate|failed to allocate"
    r"|invalid buffer size|_status_alloc_failed|bad_alloc|bad allocation",
    re.IGNORECASE,
)

# Metal's limit for arrays. "[MPSNDArray initWithDevice:descriptor:] Error: total bytes of NDArray > 2**32" is a failed
# assertion, which ends the process (https://github.com/pytorch/pytorch/issues/149261, /143477, all under /149325).
_MPS_TENSOR_BYTES = 1 << 32
# In every precision: attention on MPS casts the scores to float32 before the softmax (`sdpa_general_mps` in
# aten/src/ATen/native/mps/operations/Attention.mm). transformers' decoders that do not use it do the same.
_BYTES_A_NUMBER = 4


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's error means that memory ran out, so that a smaller batch may succeed."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


@contextlib.contextmanager
def memory_errors(device: str = "cpu") -> Iterator[None]:
    """Turns all errors of too little memory into `EngineOutOfMemory`, and frees the device memory that torch caches.

    Args:
        device: Name of the device, such as "cuda:1".

    Raises:
        EngineOutOfMemory: Memory ran out inside the block.
        EngineFailedError: A GPU computes nothing any more.
    """
    kind = device.partition(":")[0]
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            _empty_cache(kind)
            raise EngineOutOfMemory(str(error)) from error
        if kind == "cuda" and _is_lost(device):
            raise EngineFailedError(
                f"{device} computes nothing any more in this process, after an error in this or an earlier batch: "
                f"{error!r}. Start the process again, with CUDA_LAUNCH_BLOCKING=1 to see where the error comes from.",
                None,
            ) from error
        raise


def _empty_cache(kind: str) -> None:
    if kind not in ("cuda", "mps"):
        return
    import torch

    with contextlib.suppress(RuntimeError):  # another thread captures a graph, or the device is lost
        (torch.cuda if kind == "cuda" else torch.mps).empty_cache()


def _is_lost(device: str) -> bool:
    """Whether CUDA fails without new work: after an error inside a kernel, all later calls raise that error."""
    import torch

    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


class TextTooLong(Exception):
    """A batch of several texts has a text that is too long for the device even alone."""


@dataclass(frozen=True)
class TensorLimit:
    """The largest tensor of a device, and the dimensions of a model's largest tensors.

    Attributes:
        device: The device, for messages.
        heads: Number of attention heads. Each has a score for every two tokens of a text.
        width: Most numbers per token in a layer or in the model's head.
        pad_to_multiple_of: Divisor of the padded length of texts, in tokens.
        most_bytes: The limit in bytes.
    """

    device: str
    heads: int
    width: int
    pad_to_multiple_of: int = 1
    most_bytes: int = _MPS_TENSOR_BYTES

    @classmethod
    def of(cls, device_type: str, *, heads: int, width: int, pad_to_multiple_of: int = 1) -> TensorLimit | None:
        """Returns the limit of a device; `None` for "cpu" and "cuda", whose only limit is their memory."""
        return cls(device_type, heads, width, pad_to_multiple_of) if device_type == "mps" else None

    @classmethod
    def of_model(
        cls,
        device_type: str,
        config: Any,  # noqa: ANN401 - one of transformers' many classes, or of a checkpoint's own
        *,
        pad_to_multiple_of: int = 1,
        gives_logits: bool = False,
    ) -> TensorLimit | None:
        """Returns the limit of a device for a model that transformers runs; `None` if the device has no limit.

        Args:
            device_type: "cpu", "cuda" or "mps".
            config: The model's configuration. A missing number of heads, or a missing width, sets no limit.
            pad_to_multiple_of: Divisor of the padded length of texts, in tokens.
            gives_logits: Whether the model computes a logit for every word of the vocabulary at every token.
        """
        has_parts = not hasattr(config, "num_attention_heads") and hasattr(config, "get_text_config")
        of_text = config.get_text_config() if has_parts else config
        names = ["hidden_size", "intermediate_size", *(["vocab_size"] if gives_logits else [])]
        width = max(int(getattr(of_text, name, None) or 0) for name in names)
        heads = int(getattr(of_text, "num_attention_heads", None) or 0)
        return cls.of(device_type, heads=heads, width=width, pad_to_multiple_of=pad_to_multiple_of)

    def parts(self, batch: TokenBatch) -> list[TokenBatch]:
        """Splits a batch into parts that the device can hold, in the order of the texts.

        Raises:
            EngineOutOfMemory: The only text is too long.
            TextTooLong: One of several texts is too long. The halves of the batch must be tried for the others.
        """
        if self._bytes(1, longest := int(batch.lengths.max())) > self.most_bytes:
            message = (
                f"attention over {longest} tokens needs a tensor of {self._bytes(1, longest):,} bytes, and "
                f"the largest tensor of {self.device} has {self.most_bytes:,} bytes, even with more memory"
            )
            raise EngineOutOfMemory(message) if len(batch.lengths) == 1 else TextTooLong(message)
        parts, start, longest = [], 0, 0
        for place, length in enumerate(batch.lengths.tolist()):
            longest = max(longest, length)
            if self._bytes(place + 1 - start, longest) > self.most_bytes:
                parts.append(batch.part(start, place))
                start, longest = place, length
        return [*parts, batch.part(start, len(batch.lengths))] if parts else [batch]

    def _bytes(self, texts: int, longest: int) -> int:
        """Returns the size of the largest tensor: the scores of attention, or the output of the widest layer."""
        padded = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return _BYTES_A_NUMBER * texts * padded * max(self.heads * padded, self.width)


def rows_of_parts(
    limit: TensorLimit | None, batch: TokenBatch, compute: Callable[[TokenBatch], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Computes a batch in parts that fit the limit of a device.

    Args:
        limit: The limit of the device; `None` if it has no limit.
        batch: The batch.
        compute: Function that returns the rows of a part.

    Returns:
        The rows of all texts, as `compute` returns them for the whole batch.

    Raises:
        EngineOutOfMemory: The only text is too long.
        TextTooLong: One of several texts is too long.
    """
    rows = [compute(part) for part in (limit.parts(batch) if limit else [batch])]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)
