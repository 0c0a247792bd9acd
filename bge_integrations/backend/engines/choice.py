"""The choice of the engine for a model: a table of the engines' abilities, read from top to bottom."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from bge_integrations._optional import TORCH, requirement
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import EngineNotAvailableError, MissingExtraError

logger = get_logger(__name__)


@dataclass(frozen=True)
class EngineKind:
    """The abilities of an engine. `loading/start.py` starts it.

    Attributes:
        name: Name in the setting `engine`.
        package: Required package.
        extra: The extra of this package that installs `package`. `None`: both distributions install it.
        devices: Supported devices.
        automatic_devices: Devices on which `engine="auto"` may choose this engine.
        precisions: Supported precisions.
        any_architecture: Whether it runs all architectures, or only the encoders of `architecture.py`.
    """

    name: str
    package: str
    extra: str | None
    devices: tuple[str, ...]
    automatic_devices: tuple[str, ...]
    precisions: tuple[str, ...]
    any_architecture: bool

    @property
    def is_installed(self) -> bool:
        """Whether `package` is installed."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def remedy(self) -> str:
        """The command that installs `package`."""
        return f"pip install {requirement(self.extra)}"

    def obstacle(self, device: str, precision: str, *, known_architecture: bool, named: bool) -> str | None:
        """Returns the reason why this engine cannot run a model, for messages; `None` if it can.

        The arguments are those of `candidates`. `named` says whether the user has chosen this engine by name.

        Raises:
            MissingExtraError: The user has chosen this engine by name, and it is not installed.
        """
        device_type = device.split(":")[0]
        if device_type not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, not on {device}"
        if device_type not in self.automatic_devices and not named:
            return f"on {device_type} it must be asked for by name"
        if precision not in self.precisions:
            return f"it computes in {', '.join(self.precisions)}, not in {precision}"
        if not self.is_installed:
            remedy = f"{self.package} is not installed. Install it with: {self.remedy}"
            if named:
                raise MissingExtraError(remedy)
            return remedy
        if self.name == "openvino" and precision == "bfloat16" and not _cpu_computes_bfloat16():
            return "this processor has no bfloat16 instructions, without which OpenVINO would compute in float32"
        if not self.any_architecture and not known_architecture:
            return "the model is no BERT or XLM-RoBERTa encoder"
        return None


_HALVES_AND_SINGLE = ("float32", "bfloat16", "float16")

ENGINE_KINDS = (
    EngineKind("openvino", "openvino", None, ("cpu",), ("cpu",), ("float32", "bfloat16", "int8"), False),
    EngineKind("torch", "torch", TORCH, ("cpu", "cuda", "mps"), ("cpu", "cuda"), _HALVES_AND_SINGLE, False),
    EngineKind(
        "sentence-transformers",
        "sentence_transformers",
        TORCH,
        ("cpu", "cuda", "mps"),
        ("cpu", "cuda", "mps"),
        _HALVES_AND_SINGLE,
        True,
    ),
)
"""Fastest first. `engine="auto"` takes the first engine without an obstacle."""


def devices_that_compute(engine: str, precision: str) -> tuple[str, ...]:
    """Returns the kinds of device that support an engine with a precision, also kinds that this machine lacks.

    Args:
        engine: The setting `engine`.
        precision: The setting `precision`.
    """
    found = [
        device
        for kind in ENGINE_KINDS
        if engine in ("auto", kind.name) and precision in ("auto", *kind.precisions)
        for device in (kind.automatic_devices if engine == "auto" else kind.devices)
    ]
    return tuple(dict.fromkeys(found))


def candidates(wanted: str, device: str, precision: str, *, known_architecture: bool) -> Iterator[EngineKind]:
    """Yields the engines to try, fastest first. A named engine is the only candidate.

    Args:
        wanted: The setting `engine`.
        device: The resolved device.
        precision: The resolved precision.
        known_architecture: Whether the fast engines know the encoder, as far as the checkpoint's files say.

    Raises:
        EngineNotAvailableError: The named engine cannot run the model, or no engine can.
        MissingExtraError: The required package is not installed.
    """
    obstacles = {}
    for kind in ENGINE_KINDS:
        if wanted in ("auto", kind.name):
            obstacle = kind.obstacle(
                device, precision, known_architecture=known_architecture, named=wanted == kind.name
            )
            if obstacle is None:
                yield kind
            else:
                obstacles[kind.name] = obstacle
                logger.info("not %s: %s", kind.name, obstacle)
    if wanted != "auto" and obstacles:
        raise EngineNotAvailableError(
            f"engine={wanted!r} can't be used: {obstacles[wanted]}.{_remedy(wanted, device, precision)}"
        )
    if len(obstacles) == len(ENGINE_KINDS):
        reasons = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
        lacking = [kind for kind in ENGINE_KINDS if not kind.is_installed]
        if lacking and not known_architecture:
            raise MissingExtraError(
                f"{lacking[-1].package} is not installed, and what is installed can't run this model ({reasons}). "
                f"Install it with: {lacking[-1].remedy}"
            )
        raise EngineNotAvailableError(
            f"No engine computes in {precision} on {device} for this model ({reasons})."
            f"{_remedy(wanted, device, precision)}"
        )


def require_usable(name: str, device: str, precision: str) -> None:
    """Checks that an engine can run a model of a known architecture on a device in a precision.

    Raises:
        EngineNotAvailableError: The engine does not support the device or the precision here.
        MissingExtraError: The engine is not installed.
    """
    for _ in candidates(name, device, precision, known_architecture=True):
        return


def _remedy(engine: str, device: str, precision: str) -> str:
    """Returns a hint that names the supported devices if `device` is not one of them."""
    # precision="auto" may stand for a precision that is only supported on this device.
    able = devices_that_compute(engine, precision) or devices_that_compute(engine, "auto")
    if not able or device.split(":")[0] in able:
        return ""
    return f" Set device={' or '.join(map(repr, able))}, or leave device=None, which takes one that can."


def _cpu_computes_bfloat16() -> bool:
    from bge_integrations.backend.engines.openvino.engine import computes_bfloat16

    return computes_bfloat16()
