"""What all trainings share: the folder for checkpoints, the precision, and names for records."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bge_integrations._optional import require_package
from bge_integrations.backend.machine.cpu import usable_memory
from bge_integrations.errors import SettingsError
from bge_integrations.training.machine.memory import Budget, fitting_budget
from bge_integrations.training.settings import TrainingSettings

if TYPE_CHECKING:
    import torch

    from bge_integrations.backend.engines.architecture import EncoderShape
    from bge_integrations.training.trainer.starting import Start

__all__ = [
    "Loaded",
    "OnLog",
    "TrainingResult",
    "about_weights",
    "base_model",
    "budget_of",
    "checkpoints",
    "computed_in",
    "events_folder",
    "launched",
    "prepare_work",
    "require_device",
    "require_figures",
    "require_new",
    "shown_name",
    "work_folder",
]

OnLog = Callable[[int, dict[str, float]], None]
"""Function that takes a step and what is logged of it."""

_CHECKPOINTS = ".training"
_RUNS = ".runs"
_HALVES = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        output: The folder with the model.
        steps: Steps of the optimiser.
        losses: Loss by step, as logged.
        validation: nDCG@10 on the validation data by step.
    """

    output: Path
    steps: int
    losses: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)


class Loaded(Protocol):
    """What every model that is trained has; `Start` describes it."""

    @property
    def model(self) -> Any:  # noqa: ANN401 - a model of sentence-transformers
        """The model."""
        ...

    @property
    def encoder(self) -> EncoderShape | None:
        """The shape of a BERT-like encoder."""
        ...

    @property
    def pooling(self) -> str | None:
        """What is read of the encoder."""
        ...

    @property
    def stored_in(self) -> frozenset[str]:
        """Types of its weights in safetensors files."""
        ...


def work_folder(output: Path) -> Path:
    """Returns the folder beside the output that has checkpoints while training runs."""
    return output.with_name(f"{output.name}{_CHECKPOINTS}")


def events_folder(report_to: str, output: Path) -> Path | None:
    """Returns the folder for TensorBoard's files of this run, or `None` if nothing is reported.

    Raises:
        SettingsError: It is to be reported to something else.
        MissingExtraError: tensorboard is not installed.
    """
    if report_to == "none":
        return None
    if report_to != "tensorboard":
        raise SettingsError(
            f"report_to={report_to!r} is unknown; choose 'none' or 'tensorboard'. For another service, give it what "
            "on_log gets."
        )
    require_package("tensorboard", "tensorboard")
    return output.with_name(f"{output.name}{_RUNS}") / time.strftime("%Y-%m-%d_%H-%M-%S")


def checkpoints(work: Path) -> list[Path]:
    """Returns the checkpoints in a folder, the last one last."""
    return sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def prepare_work(work: Path, key: str, *, resume: bool) -> Path | None:
    """Returns the checkpoint to go on with, or `None` to start; the folder for checkpoints exists afterwards.

    Args:
        work: The folder.
        key: Text that is equal for equal data, models and settings.
        resume: Whether to go on with a checkpoint.

    Raises:
        SettingsError: There are checkpoints and `resume` is `False`, or there are none of this run and it is `True`.
    """
    note = work / "key.json"
    found = require_new(work, resume=resume)
    if resume:
        if not found:
            raise SettingsError(f"resume=True, but {work} has no checkpoint; start without it.")
        if json.loads(note.read_text(encoding="utf-8"))["key"] != key:
            raise SettingsError(f"resume=True, but {work} is of another run: model, data or settings differ.")
        return found[-1]
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"key": key}), encoding="utf-8")
    return None


def require_new(work: Path, *, resume: bool) -> list[Path]:
    """Returns the checkpoints in a folder, after a check that there are none for a run that starts.

    Raises:
        SettingsError: There are checkpoints, and `resume` is `False`.
    """
    found = checkpoints(work)
    if found and not resume:
        raise SettingsError(f"{work} has checkpoints of a run that did not end; go on with resume=True, or remove it.")
    return found


def require_device(device: str | Sequence[str] | None) -> None:
    """Checks that a process can train on a device, before anything is loaded.

    Raises:
        SettingsError: There are several, or it is a GPU other than the first. transformers' trainer would take the
            first one all the same.
    """
    if device is None:
        return
    if not isinstance(device, str) or device == "all":
        raise SettingsError(
            f"device={device!r}: a process trains on one device. For several GPUs, leave device out and start one "
            "process for each: `torchrun --nproc_per_node 2 --no-python bge train …`."
        )
    _, _, number = device.partition(":")
    if number not in ("", "0"):
        raise SettingsError(
            f"device={device!r}: training uses the first GPU that the process sees. Set the environment variable "
            f"CUDA_VISIBLE_DEVICES={number}, and leave device out."
        )


def require_figures(patience: int | None, validation: object | None) -> None:
    """Checks that a training that may stop early is evaluated.

    Raises:
        SettingsError: It is not.
    """
    if patience is not None and validation is None:
        raise SettingsError(
            f"patience={patience} stops training by figures on validation data, and there are none. Give validation, "
            "or leave patience out."
        )


def computed_in(precision: str, start: Loaded) -> str:
    """Returns the precision of the computation, where "auto" is bfloat16 if the device of `start` has it."""
    if precision != "auto":
        return precision
    device = start.model.device
    if device.type == "cuda":
        import torch

        has_bfloat16 = bool(torch.cuda.is_bf16_supported())
    else:
        from bge_integrations.backend.engines.openvino.engine import computes_bfloat16

        has_bfloat16 = device.type == "cpu" and computes_bfloat16()
    return "bfloat16" if has_bfloat16 else "float32"


def budget_of(start: Loaded, chosen: TrainingSettings) -> Budget:
    """Returns how much is computed at once: what the settings say, and else what suits the device."""
    fits = fitting_budget(
        start.encoder,
        precision=chosen.precision,
        device=start.model.device.type,
        memory=_memory(start.model.device),
        cls_only=start.pooling == "cls",
    )
    in_memory = fits.tokens_in_memory if chosen.tokens_in_memory is None else chosen.tokens_in_memory
    at_once = chosen.mini_batch_tokens or max(1, min(fits.mini_batch_tokens, in_memory))
    return dataclasses.replace(fits, mini_batch_tokens=at_once, tokens_in_memory=in_memory)


def _memory(device: torch.device) -> int:
    """Returns the bytes of a device's memory. It is the whole memory, so that a run that goes on computes the same."""
    if device.type != "cuda":
        return usable_memory()
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def about_weights(start: Loaded, model: str) -> list[str]:
    """Returns a warning if a model is stored in half precision."""
    kind = next((name for kind, name in _HALVES.items() if kind in start.stored_in), None)
    if kind is None:
        return []
    return [
        f"The weights of {shown_name(model)} are stored in {kind}. They are trained and saved in float32, which takes "
        "twice the space, since small changes get lost otherwise. Set precision when you load the result, or train "
        "from float32 weights if there are any."
    ]


def launched() -> tuple[int, int]:
    """Returns the number of this process and the count of processes, as `torchrun` and `accelerate launch` set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def base_model(start: Start) -> str | None:
    """Returns the model that the card names as the base.

    A base model is not named, since what is trained from it is an embedder. A model that was trained without its
    instruction names none. Otherwise it would get the instruction of its base when it is used, since prompts without
    content do not count.
    """
    spec = start.spec
    if (
        spec is None
        or spec.kind == "base"
        or (not start.instruction and (spec.query_instruction or spec.query_template))
    ):
        return None
    return spec.model_id


def shown_name(model: str) -> str:
    """Returns a hub id as it is, and of a folder only its own name."""
    return Path(model).resolve().name if os.path.isdir(model) else model
