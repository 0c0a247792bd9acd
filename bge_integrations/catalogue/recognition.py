"""The rules that recognise a name or a folder as one of the models."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bge_integrations.catalogue.models import MODELS, ModelSpec

__all__ = ["M3_HEAD_FILES", "Recognition", "find_model", "plain_name", "recognize", "suggest"]

M3_HEAD_FILES = {"sparse": "sparse_linear.pt", "colbert": "colbert_linear.pt"}
"""Files with the linear heads of bge-m3 and its fine-tunes, beside the encoder's own files."""

_BY_NAME = {spec.name.lower(): spec for spec in MODELS}
_RERANKER_MADE_FROM = {spec.made_from: spec for spec in MODELS if spec.kind == "reranker" and spec.made_from}
_TRAINER_FOLDER = re.compile(r"checkpoint-.+")
_ORGANISATION = re.compile(r"^(?:models--.+?--|BAAI(?:_|--))", re.IGNORECASE)
_ADDRESS = re.compile(r"^https?://[^/]+/|^(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
# One or two letters of a name may differ. At 0.8 no model of another family (gte-small, e5-small) looks like a BGE one.
_LEAST_LIKENESS = 0.8


@dataclass(frozen=True)
class Recognition:
    """A recognised model.

    Attributes:
        spec: Row of the catalogue.
        by: `"name"`: the model has the name of the row, so the catalogue decides how it is used. `"record"`: only a
            file names the BGE model as its ancestor, so the model's own files go before the catalogue.
    """

    spec: ModelSpec
    by: Literal["name", "record"]


def find_model(name_or_path: str | os.PathLike[str]) -> ModelSpec | None:
    """Recognises a model by its name, or by the name or the files of its folder; see `recognize`.

    Args:
        name_or_path: Hub id, bare name, local folder, snapshot of a hub cache, or a trainer's `checkpoint-*` folder.

    Returns:
        The model's row, or `None` for a model that is not a BGE model.
    """
    found = recognize(name_or_path)
    return found.spec if found else None


def recognize(name_or_path: str | os.PathLike[str]) -> Recognition | None:
    """Recognises a model by its name, or by the name or the files of its folder.

    Whole names are compared, without case and organisation: `"me/bge-small-en"` is found, `"my-bge-small-en"` is not.

    The name of a folder goes before its files. Files name an ancestor, and often not the nearest one. A folder with
    exactly the name of a model hardly has it by accident. The files are, in this order:

    1. The two heads of bge-m3, which only bge-m3 and its fine-tunes have.
    2. config.json, adapter_config.json and the base_model of README.md.
    3. tokenizer_config.json. It is the weakest sign, since other models use the same tokenizers.

    An ancestor counts only if config.json agrees with its kind. A classifier or a static model that was made from an
    embedder is not an embedder. A trainer's `checkpoint-*` folder is recognised by its own files, then like its parent.

    Args:
        name_or_path: Hub id, bare name, local folder, snapshot of a hub cache, or a trainer's `checkpoint-*` folder.

    Returns:
        The model's row and how it was found, or `None` for a model that is not a BGE model.
    """
    name = os.fspath(name_or_path)
    folder = os.path.expanduser(name)
    # pathlib raises for names that are too long, unknown users and unreadable folders. os.path returns False for them.
    if not os.path.isdir(folder):
        return _recognition("name", _by_name(name) or _by_name(_without_checkpoint(name)))
    real = Path(folder).resolve()
    found = _recognition("name", _by_name(name) or _by_name(str(real))) or _recognition("record", _by_records(real))
    if found is None and _TRAINER_FOLDER.fullmatch(real.name):
        called = _by_name(_without_checkpoint(name)) or _by_name(str(real.parent))
        found = _recognition("name", called) or _recognition("record", _by_records(real.parent))
    return found


def _recognition(by: Literal["name", "record"], spec: ModelSpec | None) -> Recognition | None:
    return Recognition(spec, by) if spec else None


def suggest(name: str) -> str | None:
    """Returns the name that the user probably meant by a name without a model.

    It is the name without line ends, surrounding blanks and quotes, and the hub's address, or the id of the BGE model
    with the most similar spelling. The organisation is ignored.

    Args:
        name: Hub id, bare name or path, as the user wrote it.

    Returns:
        A name that differs from `name`, or `None` if no name is similar.
    """
    clean = "".join(letter for letter in name if letter.isprintable()).strip().strip("'\"` ")
    clean = _ADDRESS.sub("", clean)
    if clean != name and os.path.isdir(os.path.expanduser(clean)):
        return clean
    nearest = _nearest(clean)
    if nearest is None:
        return clean if clean and clean != name else None
    # `find_model` already reads a bare name as the id.
    is_read_so = name == nearest.model_id or name.lower() == nearest.name.lower()
    return None if is_read_so else nearest.model_id


def plain_name(text: str) -> str:
    """Returns the model's name in a hub id or a path: in lower case, without organisation and folders.

    It reads no files. The name of a snapshot in a hub cache is that of the model's folder.
    """
    parts = _parts(text)
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        parts = parts[:-2]
    # ModelScope's cache has no dots in folder names: bge-small-zh-v1___5.
    return _ORGANISATION.sub("", parts[-1]).replace("___", ".").lower() if parts else ""


def _nearest(name: str) -> ModelSpec | None:
    parts = _parts(name)
    short = re.sub(r"[_\s]+", "-", parts[-1]).lower() if parts else ""
    short = short.removeprefix("baai-")
    likeness = {spec: difflib.SequenceMatcher(None, short, spec.name.lower()).ratio() for spec in MODELS}
    best = max(MODELS, key=likeness.__getitem__)  # the first one of equally similar models
    return best if likeness[best] >= _LEAST_LIKENESS else None


def _by_name(text: str) -> ModelSpec | None:
    """Recognises a name or a path as plain text. It reads no files, so records can't lead in circles."""
    return _BY_NAME.get(plain_name(text))


def _without_checkpoint(text: str) -> str:
    parts = _parts(text)
    return "/".join(parts[:-1]) if parts and _TRAINER_FOLDER.fullmatch(parts[-1]) else ""


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[/\\]+", text) if part not in ("", ".")]


def _by_records(folder: Path) -> ModelSpec | None:
    if all((folder / name).is_file() for name in M3_HEAD_FILES.values()):
        return _BY_NAME["bge-m3"]
    config = _json(folder / "config.json")
    for text in _recorded_names(folder, config):
        ancestor = _by_name(text) or _by_name(_without_checkpoint(text))
        spec = _descendant(ancestor, folder, config) if ancestor else None
        if spec is not None:
            return spec
    return None


def _descendant(ancestor: ModelSpec, folder: Path, config: dict[str, Any]) -> ModelSpec | None:
    """Returns the row for a checkpoint made from `ancestor`, according to the shape in its config.json."""
    if config.get("model_type", ancestor.architecture) != ancestor.architecture:
        return None
    if ancestor.kind == "reranker":
        return ancestor
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else ()
    if any(isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names):
        # bge-reranker-v2-m3 itself records bge-m3. A reranker has one label, a classifier several.
        labels = config.get("id2label")
        return _RERANKER_MADE_FROM.get(ancestor.model_id) if isinstance(labels, dict) and len(labels) == 1 else None
    if ancestor.kind == "base" and (folder / "modules.json").is_file():
        return None  # it was trained further to an embedder, which its own files describe
    return ancestor


def _recorded_names(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Yields the names that a folder's files give for the model or its ancestor."""
    # transformers 5 no longer writes _name_or_path, so only the card of newer fine-tunes names the ancestor.
    recorded = [config.get("_name_or_path"), _json(folder / "adapter_config.json").get("base_model_name_or_path")]
    recorded += _base_models_of_card(folder / "README.md")
    recorded.append(_json(folder / "tokenizer_config.json").get("name_or_path"))
    yield from (name for name in recorded if isinstance(name, str))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading the model will report what is wrong with this file
    return content if isinstance(content, dict) else {}


def _base_models_of_card(card: Path) -> list[str]:
    """Returns base_model, a text or a list of texts, from the YAML header of a model card."""
    try:
        text = card.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return []
    header = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    if not header:
        return []
    yaml = re.sub(r"(?:^|\s)#.*$", "", header[1], flags=re.MULTILINE)
    entry = re.search(r"^base_model:[ \t]*(\[[^\]]*\]|.*(?:\n[ \t]*- .*)*)", yaml, re.MULTILINE)
    values = re.split(r"\n[ \t]*- |[\[\],\n]", entry[1]) if entry else []
    return [value.strip(" \t'\"") for value in values if value.strip(" \t'\"")]
