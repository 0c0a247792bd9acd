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
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bge_integrations.backend.digests import file_digest
from bge_integrations.backend.engines import Rows
from bge_integrations.backend.facts import ModelFacts
from bge_integrations.backend.heads import Heads
from bge_integrations.backend.purpose import Purpose
from bge_integrations.backend.tokenization import TextTokenizer
from bge_integrations.errors import PreparedModelError

if TYPE_CHECKING:
    import openvino as ov

FORMAT = 4
"""Of the folder and of the graphs in it. Raised with every change that makes older ones wrong or unreadable."""

Quantization = Literal["static", "dynamic"]
"""How int8 comes about; `engines/openvino/quantization.py` compares the two."""

MANIFEST = "bge.json"
_GRAPH, _WEIGHTS, _TOKENIZER, _HEADS = "model.xml", "model.bin", "tokenizer.json", "heads.safetensors"
_FILES = (_GRAPH, _WEIGHTS, _TOKENIZER, _HEADS)


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


@dataclass(frozen=True)
class PreparedModel:
    """An opened folder, whose files are as they were written.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        identity: Digest of all its files.
    """

    folder: Path
    manifest: Manifest
    identity: str

    @classmethod
    def open(cls, folder: Path) -> PreparedModel:
        """Reads and checks a folder.

        Raises:
            PreparedModelError: It is damaged, or of another version.
        """
        content = _read_manifest(folder)
        if content.get("format") != FORMAT:
            maker = (content.get("versions") or {}).get("bge-integrations", "an unknown version")
            raise PreparedModelError(
                f"{folder} was prepared by bge-integrations {maker} in format {content.get('format')!r}, this version "
                f"reads format {FORMAT}. Prepare it again with `bge prepare`."
            )
        try:
            for name, digest in content["files"].items():
                if not (folder / name).is_file():
                    raise PreparedModelError(f"{folder} is damaged: {name} is missing. Copy or prepare it again.")
                if file_digest(folder / name) != digest:
                    raise PreparedModelError(
                        f"{folder} is damaged: {name} is not as it was written. Copy or prepare it again."
                    )
            return cls(folder, _manifest(content["manifest"]), "+".join(content["files"][name] for name in _FILES))
        except (KeyError, TypeError, AttributeError) as error:
            raise PreparedModelError(
                f"{folder} is damaged: {MANIFEST} lacks what it should hold ({error!r}). Copy or prepare it again."
            ) from error

    def graph(self) -> ov.Model:
        """Reads the graph, whose weights stay on disk until they are needed.

        Raises:
            PreparedModelError: OpenVINO can't read it.
        """
        import openvino as ov

        try:
            return ov.Core().read_model(self.folder / _GRAPH)
        except RuntimeError as error:
            raise PreparedModelError(
                f"{self.folder} can't be read by OpenVINO {ov.__version__}: {error}. Prepare it again with this "
                "version."
            ) from error

    def heads(self) -> Heads:
        """Reads the weights on top of the encoder; there are none for vectors."""
        from safetensors.numpy import load_file

        heads: Heads = load_file(self.folder / _HEADS)
        return heads

    def tokenizer(self) -> TextTokenizer:
        """Reads the tokenizer."""
        from tokenizers import Tokenizer

        facts = self.manifest.facts
        rust = Tokenizer.from_file(str(self.folder / _TOKENIZER))
        rust.encode_special_tokens = facts.splits_special_tokens
        return TextTokenizer(rust, pad_id=facts.pad_id, truncation_side=facts.truncation_side)


def write_prepared_model(
    folder: Path, graph: ov.Model, tokenizer: TextTokenizer, heads: Heads, manifest: Manifest
) -> None:
    """Writes a prepared model into an empty folder, the manifest last, so that a half-written one is none."""
    import openvino as ov
    from safetensors.numpy import save_file

    # float32 weights are kept to the last bit; the default would round them to float16.
    ov.save_model(graph, folder / _GRAPH, compress_to_fp16=False)
    (folder / _TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    save_file(dict(heads), folder / _HEADS)
    content = {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("bge-integrations", "openvino", "tokenizers")},
        "manifest": dataclasses.asdict(manifest),
        "files": {name: file_digest(folder / name) for name in _FILES},
    }
    (folder / MANIFEST).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Whether a folder claims to be a prepared model."""
    return os.path.isfile(folder / MANIFEST)  # pathlib raises for names that are too long, or in closed folders


def recorded_precision(model_name: str) -> str | None:
    """Returns the precision of a prepared folder, None for any other name. Checks nothing else of it."""
    folder = Path(os.path.expanduser(model_name))
    if not is_prepared(folder):
        return None
    precision = (_read_manifest(folder).get("manifest") or {}).get("precision")
    return str(precision) if precision else None


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PreparedModelError(
            f"{folder} is damaged: {MANIFEST} can't be read ({error}). Copy or prepare it again."
        ) from error
    if not isinstance(content, dict):
        raise PreparedModelError(f"{folder} is damaged: {MANIFEST} holds no object. Copy or prepare it again.")
    return content


def _manifest(content: Mapping[str, Any]) -> Manifest:
    agreement = content["agreement"]
    facts = ModelFacts.from_json(content["facts"])
    return Manifest(
        **{**content, "facts": facts, "agreement": Agreement(**agreement) if agreement else None},
    )
