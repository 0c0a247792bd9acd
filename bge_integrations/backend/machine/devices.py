"""The devices of this machine, and the meaning of `auto` for devices and precisions."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from bge_integrations.errors import DeviceNotAvailableError, SettingsError

DEVICE_KINDS = ("cuda", "mps", "cpu")
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and both under WSL


def available_devices() -> list[str]:
    """Returns the devices of this machine that can run models, best first.

    The import of torch takes seconds, so torch is only asked if it may know another device than the CPU.
    """
    if "torch" not in sys.modules and not _may_have_accelerator():
        return ["cpu"]
    import torch

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def resolve_devices(device: str | Sequence[str] | None, kinds: Collection[str] = DEVICE_KINDS) -> tuple[str, ...]:
    """Returns the devices to use together.

    Args:
        device: One device, several devices, `"all"` for all devices of the best kind, or `None` for the best device.
            "cpu" may occur several times: then its cores are divided.
        kinds: The kinds of device that support the other settings. `None`, `"auto"` and `"all"` prefer these kinds. A
            device given by name does not depend on them.

    Raises:
        DeviceNotAvailableError: A device is not on this machine.
        SettingsError: Devices of several kinds, or one GPU twice.
    """
    if device in (None, "auto", "all"):
        # If only the CPU supports the settings, other devices and the import of torch are not needed.
        available = ["cpu"] if {*kinds} == {"cpu"} else available_devices()
        fitting = [name for name in available if name.split(":")[0] in kinds] or available
        first = fitting[0].split(":")[0]
        return tuple(name for name in fitting if name.split(":")[0] == first) if device == "all" else (fitting[0],)
    if isinstance(device, str):
        return (resolve_device(device),)
    devices = tuple(resolve_device(name) for name in device)
    if len({name.split(":")[0] for name in devices}) > 1:
        raise SettingsError(
            f"device={list(device)!r} names devices of several kinds, which compute different vectors; use one kind."
        )
    if devices[0] != "cpu" and len(set(devices)) < len(devices):
        raise SettingsError(f"device={list(device)!r} names one device twice; name each device once.")
    return devices


def resolve_device(device: str) -> str:
    """Returns the unique name of a device: "cuda:0" for "cuda", the best device for "auto".

    Raises:
        DeviceNotAvailableError: The device is not on this machine. The message names the available devices.
    """
    if device in ("cpu", "cpu:0"):
        return "cpu"
    available = available_devices()
    if device == "auto":
        return available[0]
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", device)
    cuda_devices = sum(name.startswith("cuda") for name in available)
    known = {name.split(":")[0] for name in available}
    if match and match[1] in known and (match[1] != "cuda" or int(match[2] or 0) < cuda_devices):
        # "cuda" and "cuda:0" are one device and must share one model.
        return f"cuda:{match[2] or 0}" if match[1] == "cuda" else match[1]
    raise DeviceNotAvailableError(
        f"device={device!r} is not on this machine; it has {', '.join(map(repr, available))}. Set device=None to use "
        "the first of these."
    )


def resolve_precision(precision: str, device: str) -> str:
    """Returns the precision for a device. `"auto"` is float16 on CUDA, as in the model authors' code, else float32."""
    if precision != "auto":
        return precision
    return "float16" if device.startswith("cuda") else "float32"


def _may_have_accelerator() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    if sys.platform == "darwin":
        return True
    try:
        built = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return True
    if not re.search(r"^(?:cuda|hip|xpu)\b[^=]*=\s*['\"]", built, re.MULTILINE):
        return False
    return not sys.platform.startswith("linux") or any(Path(file).exists() for file in _DRIVER_FILES)
