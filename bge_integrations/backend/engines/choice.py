"""Which engine runs a model: a table of what each can do, read from top to bottom."""

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
    """What an engine can do.

    Attributes:
        name: As in the setting `engine`.
        package: What must be installed.
        extra: The extra of this package that brings it; None: it comes with both distributions.
        devices: The devices that it runs on.
        automatic_devices: Those where `engine="auto"` may choose it.
        precisions: The precisions that it computes in.
        any_architecture: Whether it runs everything, or only the encoders of `architecture.py`.

    `loading/start.py` has what starts each.
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
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install {requirement(self.extra)}"

    def obstacle(self, device: str, precision: str, *, known_architecture: bool, named: bool) -> str | None:
        """Returns why it can't run a model, in words; None where it can.

        Args:
            device: Where to run, as resolved.
            precision: How to compute, as resolved.
            known_architecture: As for `candidates`.
            named: Whether the user names it.

        Raises:
            MissingExtraError: The user names it, and it is not installed.
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
"""Fastest first; `engine="auto"` takes the first that nothing stands against."""


def devices_that_compute(engine: str, precision: str) -> tuple[str, ...]:
    """Returns the kinds of device on which an engine computes so, whether there are such devices here or not.

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
    """Yields the engines to try, best first; for a named engine only that one.

    Args:
        wanted: The setting `engine`.
        device: Where to run, as resolved.
        precision: How to compute, as resolved.
        known_architecture: Whether the checkpoint is one of those that the fast engines know, as far as its files say.

    Raises:
        EngineNotAvailableError: The engine named can't do it, or none can.
        MissingExtraError: The engine named is not installed.
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
    """Checks that one engine can run a model that it knows.

    Raises:
        EngineNotAvailableError: It can't do it so.
        MissingExtraError: It is not installed.
    """
    for _ in candidates(name, device, precision, known_architecture=True):
        return


def _remedy(engine: str, device: str, precision: str) -> str:
    """Names the devices that can do it where this one can't."""
    # precision="auto" may have become one that only this device is for.
    able = devices_that_compute(engine, precision) or devices_that_compute(engine, "auto")
    if not able or device.split(":")[0] in able:
        return ""
    return f" Set device={' or '.join(map(repr, able))}, or leave device=None, which takes one that can."


def _cpu_computes_bfloat16() -> bool:
    from bge_integrations.backend.engines.openvino.engine import computes_bfloat16

    return computes_bfloat16()
