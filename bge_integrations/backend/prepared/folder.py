"""A prepared model: a folder with a graph, a tokenizer and what is known of the model, which loads without torch.

| file | content |
|---|---|
| `bge.json` | the manifest: what it is made from, by which versions, and the digests of the other files |
| `model.xml`, `model.bin` | the graph and its weights, in OpenVINO's format |
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
from bge_integrations.backend.guarantees.forks import native_code
from bge_integrations.backend.machine.versions import version_of
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Heads
from bge_integrations.backend.prepared.fit import misfit_of_facts, misfit_of_parts
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.errors import PreparedModelError
from bge_integrations.settings import Purpose

if TYPE_CHECKING:
    from bge_integrations.backend.engines.openvino.library import ov

FORMAT = 4
"""Of the folder and of the graphs in it. Raised with every change that makes older ones wrong or unreadable."""

Quantization = Literal["static", "dynamic"]
"""How int8 comes about; `engines/openvino/quantization.py` compares the two."""

TOKENIZER = "tokenizer.json"
_GRAPH, _WEIGHTS, _HEADS = "model.xml", "model.bin", "heads.safetensors"
_FILES = (_GRAPH, _WEIGHTS, TOKENIZER, _HEADS)

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
    """How near a rounded model's vectors are to the float32 ones, measured while it was prepared.

    Attributes:
        texts: How many texts were compared.
        mean_cosine: Mean of the cosines.
        least_cosine: The least of them.
    """

    texts: int
    mean_cosine: float
    least_cosine: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared model says of itself.

    Attributes:
        purpose: What it can be used for.
        source: The name of the model that it is made from; of a local folder only the last part.
        revision: The revision asked for, if any.
        content: Digest of the source's files.
        model_id: The BGE model's id in the catalogue; None for any other model.
        query_instruction: What goes before a query by default, for people to read; None where nobody looked it up.
        precision: "float32", "bfloat16" or "int8".
        quantization: How it was quantised; None unless int8.
        calibration_texts: How many texts the ranges of activations were measured on; None where none were needed.
        agreement: With float32; None for float32 itself.
        rows: What the graph gives for a text.
        facts: What is known of the model.
        versions: Of the packages that made it.
        cache_key: Of a graph in this package's cache, the key that it was made for; None elsewhere.
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
    rows: Rows
    facts: ModelFacts
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model as OpenVINO runs it.

    Attributes:
        manifest: What is known of it.
        graph: The graph, which engines are compiled from, also later and in forked processes.
        tokenizer: The tokenizer.
        heads: The weights on top of the encoder; there are none for vectors.
    """

    manifest: Manifest
    graph: ov.Model
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
    """A prepared model that was opened in its folder, whose files were as they had been written.

    The weights stay in their file and are read when they are needed. What becomes of the folder later changes nothing:
    an open file stays as it is when its name is deleted.

    Attributes:
        folder: Where it was.
        identity: Digest of all its files.
    """

    folder: Path
    identity: str

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return str(self.folder)

    @classmethod
    def open(cls, folder: Path) -> PreparedFolder:
        """Reads and checks a folder: its manifest, its files against their digests, and that they fit each other.

        Raises:
            PreparedModelError: It is damaged, of another version, or can't be read.
        """
        try:
            return cls._open(folder)
        except OSError as error:
            raise PreparedModelError(f"{folder} can't be read: {error}.") from error

    @classmethod
    def _open(cls, folder: Path) -> PreparedFolder:
        content = read_manifest(folder)
        if content.get("format") != FORMAT:
            maker = content.get("versions", {}).get("bge-integrations", "an unknown version")
            raise PreparedModelError(
                f"{folder} was prepared by bge-integrations {maker} in format {content.get('format')!r}, this version "
                f"reads format {FORMAT}. Prepare it again with `bge prepare`."
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


def _read_graph(folder: Path) -> ov.Model:
    from bge_integrations.backend.engines.openvino.library import ov

    try:
        with native_code():
            return ov.Core().read_model(folder / _GRAPH)
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
    except Exception as error:  # the library raises nothing more special
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
    folder: Path, graph: ov.Model, tokenizer: TextTokenizer, heads: Heads, manifest: Manifest
) -> None:
    """Writes a prepared model into an empty folder, the manifest last: without it the folder is never loaded.

    Raises:
        OSError: The folder can't be written to.
    """
    from safetensors.numpy import save

    from bge_integrations.backend.engines.openvino.library import ov

    try:
        # float32 weights are kept to the last bit; the default would round them to float16.
        ov.save_model(graph, folder / _GRAPH, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO does not say which error of the system it met
        what = f"OpenVINO can't write the graph ({error}); the disk may be full"
        raise OSError(errno.EIO, what, str(folder / _GRAPH)) from error
    (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    # The library's own way to write a file makes it readable by its owner alone, whatever the umask.
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
    """What a folder of any format says of itself, for people to read.

    Attributes:
        is_current: Whether this version reads its format.
        source: The name of the model that it is made from.
        precision: "float32", "bfloat16" or "int8".
        purpose: "vectors", "scores" or "m3".
    """

    is_current: bool
    source: str
    precision: str
    purpose: str


def read_summary(folder: Path) -> Summary | None:
    """Reads what a folder says of itself, and checks nothing else; None where it is damaged."""
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
    """Returns the digests of all files, which are as they were written.

    Raises:
        PreparedModelError: A file is not, or the manifest does not say how it was written.
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
            raise damaged(folder, f"{name} is not as it was written")
    return "+".join(content["files"][name] for name in _FILES)
