"""Prepared folders and cached graphs whose parts are not of one model: refused when opened, or made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.checkpoint.digests import file_digest
from bge_integrations.backend.engines.openvino.library import op, ov
from bge_integrations.errors import PreparedModelError
from bge_integrations.prepare import prepare
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3, make_reranker

Change = Callable[[dict[str, Any]], object]

NO_MANIFESTS = [b"", b"5", b"[]", b"[" * 3000, b"\xff", b"{}", b'{"format": 6}']


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared folders by purpose, and "wider", of vectors too."""
    folder = tmp_path_factory.mktemp("prepared")
    made = {
        "vectors": make_checkpoint(folder / "my-embedder", modules=("cls", "normalize"), prompts={"query": "q: "}),
        "wider": make_checkpoint(folder / "my-wider", "xlm-roberta", modules=("cls",), hidden_size=48, positions=80),
        "scores": make_reranker(folder / "my-reranker"),
        "m3": make_m3(folder / "bge-m3"),
    }
    for name, checkpoint in made.items():
        purpose: Any = "vectors" if name == "wider" else name
        prepare(checkpoint, folder / name, purpose=purpose)
    return {name: folder / name for name in made}


def craft(folder: Path, target: Path, change: Change | None = None) -> Path:
    """Copies a prepared folder, changes its manifest, and brings its digests up to date."""
    shutil.copytree(folder, target)
    return sign(target, change)


def sign(folder: Path, change: Change | None = None) -> Path:
    content = json.loads((folder / "bge.json").read_text())
    if change:
        change(content)
    if isinstance(content.get("files"), dict):
        content["files"].update({name: file_digest(folder / name) for name in content["files"]})
    (folder / "bge.json").write_text(json.dumps(content))
    return folder


def facts(**values: Any) -> Change:  # noqa: ANN401
    return lambda content: content["manifest"]["facts"].update(values)


def shape(**values: Any) -> Change:  # noqa: ANN401
    return lambda content: content["manifest"]["facts"]["encoder"].update(values)


def manifest(**values: Any) -> Change:  # noqa: ANN401
    return lambda content: content["manifest"].update(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *[(facts(dimension=value), "dimension") for value in (10**12, "32", 16, -1, 0, 32.0, True, None)],
        *[(facts(max_tokens=value), "max_tokens") for value in ("x", 0, 2, 10**9, float("inf"))],
        *[(facts(positions=value), "positions") for value in ("x", -1, 10**9)],
        *[(facts(prompts=value), "prompts") for value in (5, ["query"], {"query": 5})],
        *[(facts(pooling=value), "pooling") for value in ("clss", None, 5, ["cls"])],
        *[(facts(pad_id=value), "pad_id") for value in (-1, 10**9, "0")],
        (facts(pooling="mean"), "rows"),
        (facts(default_prompt_name="unheard of"), "default_prompt_name"),
        (facts(truncation_side="up"), "truncation_side"),
        (facts(unheard_of=5), "unheard_of"),
        (facts(encoder=None), "no encoder"),
        (facts(normalizes="yes"), "normalizes"),
        *[(shape(hidden_size=value), "") for value in (0, 64, "32", 10**12)],
        *[(shape(heads=value), "") for value in (0, 5, None)],
        *[(shape(positions=value), "positions") for value in (32, 10**9)],
        *[(shape(token_types=value), "") for value in (0, 2, 9)],
        (shape(pad_id=10**6), "pad_id"),
        *[(manifest(facts=value), "facts") for value in (None, "x")],
        *[(manifest(rows=value), "rows") for value in ("tokens", "pooled", 5)],
        *[(manifest(purpose=value), "") for value in ("m3", "scores", "x")],
        *[(manifest(precision=value), "precision") for value in ("int4", 5, ["float32"])],
        (manifest(agreement={"texts": "x"}), "agreement"),
        (lambda content: content.update(files=[]), "files"),
        (lambda content: content["files"].pop("model.bin"), "model.bin"),
        (lambda content: content.update(manifest=[1]), "manifest"),
        (lambda content: content.update(versions=5), "versions"),
        (lambda content: content.update(format=3), "format 3"),
        (lambda content: content["manifest"].pop("facts"), "facts"),
    ],
)
def test_facts_that_can_not_be_true_are_refused(
    prepared: dict[str, Path], tmp_path: Path, change: Change, named: str
) -> None:
    folder = craft(prepared["vectors"], tmp_path / "crafted", change)
    with pytest.raises(PreparedModelError) as caught:
        BgeEncoder(folder)
    assert str(folder) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("content", NO_MANIFESTS)
def test_a_manifest_that_is_none_is_named(prepared: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(prepared["vectors"], tmp_path / "crafted")
    (folder / "bge.json").write_bytes(content)
    with pytest.raises(PreparedModelError, match=r"bge\.json|in format None"):
        BgeEncoder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "heads.safetensors", "model.xml", "words.npy"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'\x10\0\0\0\0\0\0\0{"a":1}'])
def test_files_that_can_not_be_read_are_named(
    prepared: dict[str, Path], tmp_path: Path, name: str, content: bytes
) -> None:
    folder = shutil.copytree(prepared["vectors"], tmp_path / "crafted")
    (folder / name).write_bytes(content)
    sign(folder)
    with pytest.raises(PreparedModelError, match=name.replace(".", r"\.")):
        BgeEncoder(folder)


def test_a_graph_without_weights_is_refused(prepared: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(prepared["vectors"], tmp_path / "crafted")
    for content, said in ((b"", r"model\.bin is empty"), (b"half", r"model\.xml can't be read")):
        (folder / "model.bin").write_bytes(content)
        with pytest.raises(PreparedModelError, match=said):
            BgeEncoder(sign(folder))


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((80, 33), np.float32),
        np.zeros((7, 32), np.float32),
        np.zeros((80, 32), np.float64),
        np.zeros(80, np.float32),
        np.zeros(80, np.dtype([("values", np.int8, (31,)), ("scale", np.float32)])),
        np.zeros(80, np.dtype([("values", np.int8), ("scale", np.float32)])),
    ],
    ids=lambda rows: f"{rows.shape}-{rows.dtype.kind}",
)
def test_words_of_another_shape_are_refused(prepared: dict[str, Path], tmp_path: Path, rows: NDArray[Any]) -> None:
    folder = shutil.copytree(prepared["vectors"], tmp_path / "crafted")
    np.save(folder / "words.npy", rows)
    with pytest.raises(PreparedModelError, match=r"words\.npy"):
        BgeEncoder(sign(folder))


@pytest.mark.parametrize("names", [["model.xml", "model.bin"], ["bge.json"], ["words.npy"]])
def test_parts_of_two_models_are_refused(prepared: dict[str, Path], tmp_path: Path, names: list[str]) -> None:
    folder = shutil.copytree(prepared["vectors"], tmp_path / "crafted")
    for name in names:
        shutil.copy(prepared["wider"] / name, folder / name)
    sign(folder)
    with pytest.raises(PreparedModelError, match="is damaged"):
        BgeEncoder(folder)


def test_a_graph_of_something_else_is_refused(prepared: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(prepared["vectors"], tmp_path / "crafted")
    given = op.parameter([-1, -1], ov.Type.f32, name="ids")
    result = op.result(op.add(given, op.constant(np.ones((1, 2), np.float32))))
    ov.save_model(ov.Model([result], [given], "nothing"), folder / "model.xml")
    with pytest.raises(PreparedModelError, match=r"model\.xml takes ids"):
        BgeEncoder(sign(folder))


@pytest.mark.parametrize(
    ("purpose", "name", "part"),
    [
        ("scores", "score_out.weight", np.zeros((2, 32), np.float32)),
        ("scores", "score_dense.bias", np.zeros(5, np.float32)),
        ("scores", "score_out.weight", np.zeros((1, 32), np.float64)),
        ("scores", "score_dense.weight", None),
        ("m3", "sparse.weight", np.zeros((3, 32), np.float32)),
        ("m3", "colbert.weight", np.zeros((32, 5), np.float32)),
        ("m3", "colbert.bias", np.zeros((), np.float32)),
        ("m3", "sparse.bias", None),
    ],
)
def test_heads_of_another_shape_are_refused(
    prepared: dict[str, Path],
    tmp_path: Path,
    purpose: str,
    name: str,
    part: Any,  # noqa: ANN401
) -> None:
    folder = shutil.copytree(prepared[purpose], tmp_path / "crafted")
    heads = {**load_file(folder / "heads.safetensors"), name: part}
    save_file({key: value for key, value in heads.items() if value is not None}, folder / "heads.safetensors")
    kind = BgeReranker if purpose == "scores" else BgeM3Encoder
    with pytest.raises(PreparedModelError, match=rf"heads\.safetensors has .*{name.split('.')[0]}"):
        kind(sign(folder))
