"""Collects the facts about a machine for a bug report: versions, devices, engines, caches."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from bge_integrations._optional import SLIM, WHOLE, installed_distributions, requirement
from bge_integrations._version import __version__
from bge_integrations.backend.checkpoint.manifest import MANIFEST
from bge_integrations.backend.engines.choice import ENGINE_KINDS, EngineKind, require_usable
from bge_integrations.backend.machine.cpu import thread_limits, usable_cores, usable_memory
from bge_integrations.backend.machine.devices import available_devices
from bge_integrations.backend.machine.versions import module_of, version_of
from bge_integrations.backend.prepared.entries import graphs_folder
from bge_integrations.catalogue import MODELS
from bge_integrations.errors import EngineNotAvailableError

_PACKAGES = (
    "sentence-transformers",
    "transformers",
    "tokenizers",
    "torch",
    "numpy",
    "huggingface-hub",
    "langchain-core",
    "llama-index-core",
    "openvino",
    "nncf",
)


def describe() -> dict[str, Any]:
    """Returns the facts by topic, as plain data for JSON.

    It imports torch, which takes seconds. It uses no network, and the result contains no token.
    """
    limits = thread_limits()  # before the import of torch, which adds its own number
    return {
        "versions": {
            "python": platform.python_version(),
            **_own_versions(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": usable_cores(),
            "memory_gib": round(usable_memory() / 2**30, 1),
        },
        "threads": limits,
        "devices": _devices(),
        "engines": _engines(),
        "temporary_files": _temporary_files(),
        "caches": [_cache(folder) for folder in _cache_folders()],
        "graph_cache": _graph_cache(),
    }


def _own_versions() -> dict[str, str]:
    """Returns the installed distribution. The two share their files, so removing one of two breaks the other."""
    installed = installed_distributions()
    if installed == [WHOLE, SLIM]:
        remedy = f"pip uninstall -y {SLIM} && pip install --force-reinstall --no-deps {WHOLE}"
        return {
            WHOLE: __version__,
            SLIM: f"{_version(SLIM)}; both are installed, and they share their files. Keep one: {remedy}",
        }
    return {installed[0] if installed else WHOLE: __version__}


def _version(package: str) -> str:
    found = version_of(package)
    if found is not None:
        return found
    is_there = importlib.util.find_spec(module_of(package).split(".")[0]) is not None
    return "of unknown version" if is_there else "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _devices() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return {"cpu": platform.machine()}
    import torch

    return {
        name: torch.cuda.get_device_name(name) if name.startswith("cuda") else platform.machine()
        for name in available_devices()
    }


def _engines() -> dict[str, str]:
    """Returns the precisions that each engine supports on this machine's devices."""
    devices = list(dict.fromkeys(name.split(":")[0] for name in available_devices()))
    described = {}
    for kind in ENGINE_KINDS:
        described[kind.name] = _usable(kind, devices) if kind.is_installed else f"not installed: {kind.remedy}"
    quantiser = (
        "installed" if importlib.util.find_spec("nncf") else f"not installed: pip install {requirement('prepare')}"
    )
    return {**described, "static quantiser": quantiser}


def _usable(kind: EngineKind, devices: list[str]) -> str:
    precisions = {device: [name for name in kind.precisions if _computes(kind, device, name)] for device in devices}
    parts = [f"{device}: {', '.join(names)}" for device, names in precisions.items() if names]
    return "; ".join(parts) or f"nothing here; it runs on {' and '.join(kind.devices)}"


def _computes(kind: EngineKind, device: str, precision: str) -> bool:
    try:
        require_usable(kind.name, device, precision)
    except EngineNotAvailableError:
        return False
    return True


def _cache_folders() -> list[Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = [os.environ.get("SENTENCE_TRANSFORMERS_HOME"), HF_HUB_CACHE]
    return [Path(folder) for folder in dict.fromkeys(folders) if folder]


def _temporary_files() -> dict[str, Any]:
    """Returns the folder in which adapters are merged with their base model during loading."""
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:  # no writable folder, or a file system that does not report its free space
        return {"folder": None, "free_gib": None, "problem": str(error)}
    return {"folder": folder, "free_gib": round(free / 2**30, 1)}


def _cache(folder: Path) -> dict[str, Any]:
    models = {}
    for spec in MODELS:
        repository = folder / f"models--{spec.model_id.replace('/', '--')}"
        if os.path.isdir(repository):
            models[spec.model_id] = _mib(repository)
    return {
        "folder": str(folder),
        "exists": os.path.isdir(folder),
        "symlinks": _symlinks_work(folder),
        "models_mib": models,
    }


def _symlinks_work(folder: Path) -> bool | None:
    """Returns whether the hub's client can link snapshots to blobs, or `None` if the folder is not writable.

    Without links the client copies files, which can take more disk space.
    """
    from huggingface_hub.constants import HF_HUB_DISABLE_SYMLINKS

    if HF_HUB_DISABLE_SYMLINKS:
        return False
    try:
        # Not the client's `are_symlinks_supported`, which creates a missing folder and warns.
        with tempfile.TemporaryDirectory(dir=folder) as tried:
            try:
                os.symlink("target", os.path.join(tried, "link"))
            except (OSError, NotImplementedError):  # Windows allows symlinks only for few users
                return False
    except OSError:
        return None
    return True


def _graph_cache() -> dict[str, Any]:
    try:
        folder = graphs_folder()
    except OSError as error:  # no home folder
        return {"folder": None, "exists": False, "entries": 0, "mib": 0.0, "problem": error.strerror}
    entries = sum(1 for _ in folder.glob(f"*/{MANIFEST}"))
    return {"folder": str(folder), "exists": os.path.isdir(folder), "entries": entries, "mib": _mib(folder)}


def _mib(folder: Path) -> float:
    """Returns the size of all files in MiB. Symlinks do not count."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile, or not readable
            state = path.lstat()
            size += state.st_size if stat.S_ISREG(state.st_mode) else 0
    return round(size / 2**20, 1)
