"""A prepared model: a folder with a graph, a tokenizer and the model's facts, which loads without torch.

| file | content |
|---|---|
| `bge.json` | the manifest: its source, the versions that made it, and the digests of the other files |
| `model.xml`, `model.bin` | the graph and its weights, in OpenVINO's format |
| `words.npy` | the table of word embeddings, in numpy's format |
| `tokenizer.json` | the tokenizer, in the format of the library tokenizers |
| `heads.safetensors` | the weights on top of the encoder, for rerankers and bge-m3 |
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bge_integrations.backend.checkpoint.digests import content_digest, file_digest
from bge_integrations.backend.checkpoint.genuine import unreadable
from bge_integrations.backend.checkpoint.json_files import (
    OBJECT,
    TEXT,
    MalformedJsonError,
    as_dataclass,
    object_of,
    object_with,
)
from bge_integrations.backend.checkpoint.manifest import MANIFEST, PRECISIONS, damaged, read_manifest
from bge_integrations.backend.engines.interface import Rows
from bge_integrations.backend.machine.versions import version_of
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Heads
from bge_integrations.backend.prepared.fit import misfit_of_facts, misfit_of_parts
from bge_integrations.backend.prepared.mapped import MappedFile
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.errors import PreparedModelError
from bge_integrations.settings import Purpose

if TYPE_CHECKING:
    from bge_integrations.backend.engines.openvino.graph import EncoderGraph

FORMAT = 6
"""Format of the folder and its graph. Raised with every change that makes older folders wrong or unreadable."""

Quantization = Literal["dynamic", "static", "mixed"]
"""Method of quantisation to int8; `engines/openvino/quantization.py` compares them."""

QuantizationChoice = Literal[Quantization, "fastest"]
"""A method, or the one that a measurement on this machine chooses."""

TOKENIZER = "tokenizer.json"
_GRAPH, _WEIGHTS, _WORDS, _HEADS = "model.xml", "model.bin", "words.npy", "heads.safetensors"
_FILES = (_GRAPH, _WEIGHTS, _WORDS, TOKENIZER, _HEADS)

_CONTENT = object_with(
    {
        "manifest": OBJECT,
        "versions": object_of(TEXT),
        "files": object_with(dict.fromkeys(_FILES, TEXT), required=_FILES),
    },
    required=("manifest", "files"),
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Cosine similarity of a rounded model's vectors to the float32 vectors, measured while it was prepared."""

    texts: int
    mean_cosine: float
    least_cosine: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a prepared model in its folder.

    Attributes:
        purpose: Purpose that it was prepared for.
        source: Name of the model that it was made from; for a local folder only the last part of its path.
        revision: Requested revision; `None` if no revision was requested.
        content: Digest of the source's files.
        model_id: Id of the BGE model in the catalogue; `None` for any other model.
        query_instruction: Default instruction before a query, for human readers; `None` for an entry of the cache.
        precision: "float32", "bfloat16" or "int8".
        quantization: Method of quantisation; `None` unless `precision` is "int8".
        calibration_texts: Number of texts that the ranges of activations were measured on; `None` without calibration.
        agreement: Agreement with float32; `None` if it was not measured, as for float32 itself.
        tokens_per_s: Speed of what was measured while it was prepared, by precision or method of quantisation.
        rows: Kind of rows that the graph gives for a text.
        facts: Facts of the model.
        versions: Versions of the packages that made it.
        cache_key: Key of the cache entry that it was made for; `None` outside the cache.
    """

    purpose: Purpose
    source: str
    revision: str | None
    content: str
    model_id: str | None
    query_instruction: str | None
    precision: str
    quantization: Quantization | None = None
    calibration_texts: int | None = None
    agreement: Agreement | None = None
    tokens_per_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rows: Rows
    facts: ModelFacts
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model as OpenVINO runs it."""

    manifest: Manifest
    graph: EncoderGraph
    tokenizer: TextTokenizer
    heads: Heads

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return "memory"

    def write(self, folder: Path) -> None:
        """Writes it into an empty folder.

        Raises:
            OSError: The folder can't be written to, or the disk is full.
        """
        write_prepared_model(folder, self.graph, self.tokenizer, self.heads, self.manifest)


@dataclass(frozen=True, kw_only=True)
class PreparedFolder(PreparedModel):
    """A prepared model that was opened from its folder. Its files matched their digests then.

    The weights stay in their files and are read when they are needed. The folder may be deleted afterwards, since an
    open file keeps its content.

    Attributes:
        folder: Folder that it was opened from.
        identity: Digests of all its files.
    """

    folder: Path
    identity: str

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return str(self.folder)

    @classmethod
    def open(cls, folder: Path) -> PreparedFolder:
        """Reads a folder, and checks its manifest, the digests of its files, and that they fit each other.

        Raises:
            PreparedModelError: The folder is damaged, has another format, or can't be read.
        """
        try:
            return cls._open(folder)
        except PreparedModelError:  # an OSError too, but its message is complete
            raise
        except OSError as error:
            raise PreparedModelError(f"{folder} can't be read: {error}.") from error

    @classmethod
    def _open(cls, folder: Path) -> PreparedFolder:
        content = read_manifest(folder)
        if content.get("format") != FORMAT:
            maker = content.get("versions", {}).get("bge-integrations", "an unknown version")
            raise PreparedModelError(
                f"{folder} was prepared by bge-integrations {maker} in format {content.get('format')!r}, but this "
                f"version reads format {FORMAT}. Prepare it again with `bge prepare`."
            )
        identity = _identity(folder, content)
        try:
            manifest = as_dataclass(Manifest, content["manifest"], "manifest")
        except MalformedJsonError as error:
            raise damaged(folder, str(error)) from error
        if manifest.precision not in PRECISIONS:
            raise damaged(folder, f"manifest.precision is {manifest.precision!r}, not one of {', '.join(PRECISIONS)}")
        if found := misfit_of_facts(manifest.purpose, manifest.rows, manifest.facts):
            raise damaged(folder, found)
        opened = cls(
            manifest=manifest,
            graph=_read_graph(folder),
            tokenizer=_read_tokenizer(folder, manifest.facts),
            heads=_read_heads(folder),
            folder=folder,
            identity=identity,
        )
        if found := misfit_of_parts(
            manifest.purpose, manifest.rows, manifest.facts, opened.tokenizer, opened.heads, opened.graph
        ):
            raise damaged(folder, found)
        return opened


def _read_graph(folder: Path) -> EncoderGraph:
    from bge_integrations.backend.engines.openvino.graph import EncoderGraph
    from bge_integrations.backend.engines.openvino.library import openvino_core, ov
    from bge_integrations.backend.engines.openvino.words import WordTable

    try:
        words = WordTable.open(folder / _WORDS)
    except ValueError as error:
        raise damaged(folder, f"{_WORDS} can't be read ({error})") from error
    try:
        weights = MappedFile(folder / _WEIGHTS)
    except ValueError as error:
        raise damaged(folder, f"{_WEIGHTS} is empty") from error
    try:
        with openvino_core() as core:
            model = core.read_model((folder / _GRAPH).read_bytes(), ov.Tensor(weights.as_array(), shared_memory=True))
            return EncoderGraph(model, words, weights.forget)
    except RuntimeError as error:
        raise PreparedModelError(
            f"{folder / _GRAPH} can't be read by OpenVINO {ov.__version__}: {error}. Prepare it again with this "
            "version."
        ) from error


def _read_tokenizer(folder: Path, facts: ModelFacts) -> TextTokenizer:
    from tokenizers import Tokenizer

    try:
        rust = Tokenizer.from_file(str(folder / TOKENIZER))
        rust.encode_special_tokens = facts.splits_special_tokens
        return TextTokenizer(rust, pad_id=facts.pad_id, truncation_side=facts.truncation_side)
    except Exception as error:  # the library raises no narrower class
        raise damaged(folder, f"{TOKENIZER} can't be read ({error})") from error


def _read_heads(folder: Path) -> Heads:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        heads: Heads = load_file(folder / _HEADS)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged(folder, f"{_HEADS} can't be read ({error})") from error
    return heads


def write_prepared_model(
    folder: Path, graph: EncoderGraph, tokenizer: TextTokenizer, heads: Heads, manifest: Manifest
) -> None:
    """Writes a prepared model into an empty folder. The manifest comes last: a folder without it is never loaded.

    Raises:
        OSError: The folder can't be written to.
    """
    from safetensors.numpy import save

    from bge_integrations.backend.engines.openvino.library import ov

    try:
        # The default would round float32 weights to float16.
        ov.save_model(graph.model, folder / _GRAPH, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO does not report the system's error
        what = f"OpenVINO can't write the graph ({error}); the disk may be full"
        raise OSError(errno.EIO, what, str(folder / _GRAPH)) from error
    graph.words.save(folder / _WORDS)
    (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    # safetensors' own function ignores the umask and writes a file that only its owner can read.
    (folder / _HEADS).write_bytes(save(dict(heads)))
    content = {
        "format": FORMAT,
        "versions": {name: version_of(name) or "unknown" for name in ("bge-integrations", "openvino", "tokenizers")},
        "manifest": dataclasses.asdict(manifest),
        "files": {name: content_digest(folder / name) for name in _FILES},
    }
    (folder / MANIFEST).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of a folder of any format, for human readers.

    Attributes:
        is_current: Whether this version reads its format.
        source: Name of the model that it was made from.
        precision: "float32", "bfloat16" or "int8".
        purpose: "vectors", "scores" or "m3".
    """

    is_current: bool
    source: str
    precision: str
    purpose: str


def read_summary(folder: Path) -> Summary | None:
    """Reads a folder's summary, and checks nothing else; returns `None` if the folder is damaged."""
    try:
        content = read_manifest(folder)
    except PreparedModelError:
        return None
    said = [content.get("manifest", {}).get(name) for name in ("source", "precision", "purpose")]
    if not all(isinstance(value, str) for value in said):
        return None
    source, precision, purpose = said
    return Summary(is_current=content.get("format") == FORMAT, source=source, precision=precision, purpose=purpose)


def _identity(folder: Path, content: Mapping[str, Any]) -> str:
    """Returns the digests of all files after comparing them with the manifest.

    Raises:
        PreparedModelError: A file is missing or has changed, or the manifest is damaged.
    """
    found = _CONTENT.fault(content)
    if found:
        raise damaged(folder, f"{folder / MANIFEST} is damaged: {found}")
    for name in _FILES:
        if not (folder / name).is_file():
            raise damaged(folder, f"{name} is missing")
        try:
            digest = file_digest(folder / name)
        except OSError as error:
            raise PreparedModelError(str(unreadable(folder / name, error))) from error
        if digest != content["files"][name]:
            raise damaged(folder, f"{name} has changed since it was written")
    return "+".join(content["files"][name] for name in _FILES)
