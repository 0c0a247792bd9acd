"""What a bug report needs to know of a machine: versions, devices, engines, caches."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bge_integrations._extras import requirement
from bge_integrations.backend.cpu import usable_cores
from bge_integrations.backend.engines.selection import ENGINE_KINDS
from bge_integrations.catalogue import MODELS

_PACKAGES = (
    "bge-integrations",
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
    """Collects it. Imports torch, which takes seconds; asks no network and shows no token.

    Returns:
        Plain data, ready for JSON, by topic.
    """
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": usable_cores()},
        "devices": _devices(),
        "engines": _engines(),
        "caches": [_cache(folder) for folder in _cache_folders()],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


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

    from bge_integrations.backend.devices import available_devices

    return {
        name: torch.cuda.get_device_name(name) if name.startswith("cuda") else platform.machine()
        for name in available_devices()
    }


def _engines() -> dict[str, str]:
    described = {}
    for kind in ENGINE_KINDS:
        where = f"{' and '.join(kind.devices)}, {', '.join(kind.precisions)}"
        described[kind.name] = where if kind.is_installed else f"not installed: {kind.remedy}"
    quantiser = (
        "installed" if importlib.util.find_spec("nncf") else f"not installed: pip install {requirement('prepare')}"
    )
    return {**described, "int8 quantiser": quantiser}


def _cache_folders() -> list[Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = [os.environ.get("SENTENCE_TRANSFORMERS_HOME"), HF_HUB_CACHE]
    return [Path(folder) for folder in dict.fromkeys(folders) if folder]


def _cache(folder: Path) -> dict[str, Any]:
    models = {}
    for spec in MODELS:
        repository = folder / f"models--{spec.model_id.replace('/', '--')}"
        if repository.is_dir():
            # Snapshots are links into blobs, so only these take room.
            sizes = (path.stat().st_size for path in (repository / "blobs").rglob("*") if path.is_file())
            models[spec.model_id] = round(sum(sizes) / 2**20, 1)
    return {"folder": str(folder), "exists": folder.is_dir(), "models_mib": models}
