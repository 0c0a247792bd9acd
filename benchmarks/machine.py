"""What the numbers were measured on: processor, cores, versions; nothing that names the machine or its folders."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "FlagEmbedding",
    "bm25s",
    "embed-anything",
    "fastembed",
    "langchain-huggingface",
    "llama-index-embeddings-huggingface",
    "nncf",
    "onnxruntime",
    "openvino",
    "optimum-intel",
    "optimum-onnx",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "bf16")


def facts() -> dict[str, Any]:
    """Returns it as plain data."""
    import psutil

    from bge_integrations.cli.environment import describe

    described = describe()
    return {
        **described["machine"],
        "devices": described["devices"],
        "instructions": instructions(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": described["versions"]["python"],
        "versions": {name: installed(name) for name in PACKAGES},
    }


def instructions() -> list[str]:
    """Returns which instructions that matter here the processor has; none where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    listed = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in _INSTRUCTIONS if name in listed]


def installed(package: str) -> str | None:
    """Returns the version of a distribution in this Python, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
