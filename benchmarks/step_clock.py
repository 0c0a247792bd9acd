"""Times the steps of transformers' trainer, which all contenders run, and notes memory. Imports torch."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.fresh import memory_mib


class StepClock(TrainerCallback):
    """Notes when each step has ended, its loss, and the most memory until then.

    On a GPU, memory is what torch allocated there; else it is the resident memory of the process.

    Attributes:
        ends: When each step had ended, in seconds of `time.perf_counter`. The loss has then come from the GPU.
        cpu_ends: The processor time of this process and its threads at each of these moments, in seconds.
        losses: The loss of each step.
        loaded_mib: Memory before the first step, with the model loaded.
        peak_mib: The most memory from then to the end of the last step.
    """

    def __init__(self, device: str) -> None:
        """Takes the device that is trained on."""
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.losses: list[float] = []
        self.loaded_mib = 0.0
        self.peak_mib = 0.0
        self._is_gpu = device.startswith("cuda")

    def start(self) -> None:
        """Notes the memory that the model takes, before the first step."""
        gc.collect()
        if self._is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.loaded_mib = torch.cuda.memory_allocated() / 2**20
        else:
            with contextlib.suppress(OSError):  # without it, the peak includes what loading took
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.loaded_mib = memory_mib()["rss_mib"]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Takes what is logged after a step."""
        if "loss" in (logs or {}):
            self.ends.append(time.perf_counter())
            self.cpu_ends.append(time.process_time())
            self.losses.append(float(logs["loss"]))
            peak = torch.cuda.max_memory_allocated() / 2**20 if self._is_gpu else memory_mib()["peak_mib"]
            # The kernel adds up the pages of a process late, so that its peak can be a little below what was read.
            self.peak_mib = max(peak, self.loaded_mib)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Has every training in this process, whoever makes the trainer, watched by this clock."""
        train = Trainer.train

        def watched(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as theirs
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(self)
            self.start()
            return train(trainer, *args, **kwargs)

        Trainer.train = watched  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Trainer.train = train  # type: ignore[method-assign]
