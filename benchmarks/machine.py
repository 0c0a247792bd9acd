"""What the numbers were measured on: processor, cores, versions; nothing that names the machine or its folders."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bge_integrations.cli.environment import describe

_PACKAGES = (
    "FlagEmbedding",
    "bm25s",
    "fastembed",
    "langchain-huggingface",
    "llama-index-embeddings-huggingface",
    "nncf",
    "onnxruntime",
    "openvino",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "bf16")


def facts() -> dict[str, Any]:
    """Returns it as plain data."""
    import psutil

    described = describe()
    return {
        **described["machine"],
        "devices": described["devices"],
        "instructions": _instructions(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": described["versions"]["python"],
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _instructions() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    listed = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in _INSTRUCTIONS if name in listed]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
