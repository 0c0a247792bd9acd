"""Describes, for an error message, a folder without loadable weights."""

from __future__ import annotations

from pathlib import Path

from bge_integrations.backend.checkpoint.location import hub_repository
from bge_integrations.catalogue import find_model

# Files of each format, in the folder itself or in a folder directly below it.
_OTHER_FORMATS = (
    ("ONNX", ("*.onnx",)),
    ("GGUF (for llama.cpp)", ("*.gguf", "*.ggml")),
    ("TensorFlow", ("*.h5", "saved_model.pb", "*.tflite")),
    ("Flax", ("*.msgpack",)),
    ("OpenVINO", ("openvino_model*.xml", "openvino_model*.bin")),
    ("CTranslate2", ("model.bin",)),
    ("Core ML", ("*.mlmodel", "*.mlpackage")),
    ("Rust (for rust-bert)", ("*.ot",)),
    ("TensorRT", ("*.engine", "*.plan")),
)
_ADAPTER = "adapter_model.*"


def what_lies_there(folder: Path, *, pickles_allowed: bool) -> str:
    """Returns why a folder probably has no loadable weights, and the fix."""
    repository = hub_repository(folder)
    unfinished = _unfinished(folder)
    if unfinished:
        return (
            f"It was fetched only in part: {unfinished} is left from an interrupted fetch. {_fetch_again(repository)}"
        )
    others = {name: file for name, patterns in _OTHER_FORMATS if (file := _first(folder, patterns))}
    if others:
        found = " and ".join(f"{name} ({file.relative_to(folder)})" for name, file in others.items())
        spec = find_model(folder)
        original = f"the original, {spec.model_id!r}" if spec else "the original model"
        return f"It has the model for {found}, which can't be loaded here; give {original}, with safetensors weights."
    adapter = _first(folder, (_ADAPTER,))
    if adapter and adapter.parent == folder:
        return f"It has an adapter ({adapter.name}) without adapter_config.json, which names the base model."
    named_otherwise = _first(folder, ("*.safetensors",))
    if named_otherwise and named_otherwise.parent == folder:
        return (
            f"It has {named_otherwise.name}, a name that no loader looks for. Rename the file to model.safetensors; "
            "if it is one of several, put model.safetensors.index.json beside it; if it is a variant, name the variant "
            "in transformers_kwargs."
        )
    if repository or (folder / ".cache" / "huggingface").is_dir():
        in_part = f"It was fetched only in part. {_fetch_again(repository)}"
        if pickles_allowed:
            return in_part
        return (
            f"{in_part} If the repository has only pytorch_model.bin, pass allow_pickle_weights=True to fetch and "
            "load that file."
        )
    return f"It has: {_listing(folder)}. Copy the rest of the model there, or give another folder."


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for place in ("", "*/"):
        for pattern in patterns:
            for path in sorted(folder.glob(place + pattern)):
                return path
    return None


def _unfinished(folder: Path) -> Path | None:
    """Returns a file that huggingface_hub fetched only in part, in its cache or in a folder that the user chose."""
    places = [folder / ".cache" / "huggingface" / "download"]
    places += [snapshots.parent / "blobs" for snapshots in folder.parents[:3] if snapshots.name == "snapshots"]
    for place in places:
        for path in sorted(place.glob("**/*.incomplete")):
            return path
    return None


def _fetch_again(repository: str | None) -> str:
    return f"Fetch it again with `hf download {repository}`." if repository else "Fetch it again."
