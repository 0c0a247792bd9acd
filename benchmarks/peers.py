"""Contenders that other Pythons run as a rule: sentence-transformers on ONNX and OpenVINO, and embed-anything (Rust).

`peers.txt` and `peers-embed-anything.txt` beside this file are what to install for them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.entrants import BATCH, Loaded, Place
from benchmarks.machine import instructions

_OWNER = "local"
_REVISION = "0" * 39 + "1"
"""Of the model in a hub's cache. With a commit named, embed-anything looks for no newer one and needs no network."""

_CALIBRATION_TEXTS = 300
"""What sentence-transformers itself takes."""


def load_onnx(precision: str, place: Place) -> Loaded:
    """Loads `SentenceTransformer(backend="onnx")`; for "int8", what its own function quantises for this processor."""
    library = importlib.import_module("sentence_transformers")
    arch = _arch() if precision == "int8" else ""

    def write(folder: Path) -> None:
        model = library.SentenceTransformer(str(place.model), backend="onnx", device="cpu")
        model.save_pretrained(str(folder))
        if arch:
            library.export_dynamic_quantized_onnx_model(model, arch, str(folder))

    settings = {"provider": "CPUExecutionProvider"}
    if arch:
        settings["file_name"] = f"onnx/model_qint8_{arch}.onnx"
    return _of_sentence_transformers(place.made(f"sentence-transformers-onnx-{arch}", write), "onnx", settings)


def load_openvino(precision: str, place: Place) -> Loaded:
    """Loads `SentenceTransformer(backend="openvino")`.

    Args:
        precision: "": as it comes, which is bfloat16 where the processor has it. "float32": asked for. "int8": what
            its own function quantises, after a look at texts of this repository.
        place: Where the model is.
    """
    # Otherwise its import starts a process that reports to the makers.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    library = importlib.import_module("sentence_transformers")

    def write(folder: Path) -> None:
        model = library.SentenceTransformer(str(place.model), backend="openvino", device="cpu")
        model.save_pretrained(str(folder))
        if precision == "int8":
            library.export_static_quantized_openvino_model(
                model,
                None,
                str(folder),
                dataset_name=str(calibration(place)),
                dataset_config_name="default",
                dataset_split="train",
                column_name="text",
            )

    kind = "sentence-transformers-openvino" + ("-int8" if precision == "int8" else "")
    settings: dict[str, Any] = {}
    if precision == "int8":
        settings["file_name"] = "openvino/openvino_model_qint8_quantized.xml"
    if precision == "float32":
        settings["ov_config"] = {"INFERENCE_PRECISION_HINT": "f32"}
    return _of_sentence_transformers(place.made(kind, write), "openvino", settings)


def _of_sentence_transformers(folder: Path, backend: str, settings: dict[str, Any]) -> Loaded:
    library = importlib.import_module("sentence_transformers")
    model = library.SentenceTransformer(str(folder), backend=backend, device="cpu", model_kwargs=settings)
    return Loaded(partial(model.encode, batch_size=BATCH), model.encode)


def _arch() -> str:
    """Returns the newest instructions of this processor among those that the quantising function knows."""
    found = instructions()
    wanted = {"avx512_vnni": "avx512_vnni", "avx512f": "avx512", "asimd": "arm64"}
    return next((name for flag, name in wanted.items() if flag in found), "avx2")


def calibration(place: Place) -> Path:
    """Returns a folder of texts, made once, that `datasets` reads: a line of JSON each."""

    def write(folder: Path) -> None:
        from benchmarks.texts import make_mix

        lines = [json.dumps({"text": text}) for text in make_mix("mixed", _CALIBRATION_TEXTS, place.model, 3).texts]
        (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")

    return place.made("calibration", write)


def load_embed_anything(place: Place) -> Loaded:
    """Loads embed-anything's `EmbeddingModel` with candle, batches of 32 in the order given."""
    library = importlib.import_module("embed_anything")
    name = _in_hub_cache(place, place.model)
    return _of_embed_anything(
        library.EmbeddingModel.from_pretrained_hf(name, revision=_REVISION, pooling=library.Pooling.Cls)
    )


def load_embed_anything_onnx(place: Place) -> Loaded:
    """Loads embed-anything's `EmbeddingModel` with onnxruntime and the fused graph of `onnx_models`."""
    from benchmarks.onnx_models import exported

    library = importlib.import_module("embed_anything")
    name = _in_hub_cache(place, exported(place))
    # The model that is named says how to pool; the files are those of the folder.
    known = library.ONNXModel.BGESmallENV15
    return _of_embed_anything(
        library.EmbeddingModel.from_pretrained_onnx(
            library.WhichModel.Bert, known, name, revision=_REVISION, path_in_repo="model.onnx"
        )
    )


def _in_hub_cache(place: Place, files: Path) -> str:
    """Lays a folder out as the hub's cache does, points to that cache, and returns the model's name in it."""

    def write(cache: Path) -> None:
        snapshot = cache / f"models--{_OWNER}--{place.model.name}" / "snapshots" / _REVISION
        snapshot.mkdir(parents=True)
        for file in files.iterdir():
            (snapshot / file.name).symlink_to(file.resolve())

    os.environ["HF_HUB_CACHE"] = str(place.made("hub-onnx" if files != place.model else "hub", write))
    return f"{_OWNER}/{place.model.name}"


def _of_embed_anything(model: Any) -> Loaded:  # noqa: ANN401 - the package may be missing here
    def embed(texts: list[str]) -> list[list[float]]:
        return [found.embedding for found in model.embed_query(texts)]

    return Loaded(embed, lambda text: embed([text])[0])
