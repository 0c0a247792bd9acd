"""Describes models to mteb, so that its cache never mixes results of different vectors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.catalogue import ModelSpec, recognize
from bge_integrations.evaluation.mteb.library import import_mteb

__all__ = ["model_id", "model_meta", "with_data"]

_FRAMEWORKS = {"openvino": "OpenVINO", "torch": "PyTorch", "sentence-transformers": "Sentence Transformers"}
_LANGUAGES = {"en": "eng-Latn", "zh": "zho-Hans"}
_CODE = "https://github.com/FlagOpen/FlagEmbedding"
# Names that say nothing without the folder that they are in.
_PLAIN_FOLDER = re.compile(r"model|best|final|last|output|onnx|openvino|checkpoint-.+", re.IGNORECASE)
_LOCAL = "local"


def model_id(name: str) -> str:
    """Returns a model's name as mteb wants it, `organisation/name`, without a path of this machine.

    A hub id stays as it is. A snapshot in a hub cache has the id of its repository. A folder with the name of a BGE
    model has that model's id, and any other folder has the organisation `local`.

    Args:
        name: Hub id, local folder, or snapshot of a hub cache.
    """
    folder = os.path.expanduser(name)
    if not os.path.isdir(folder) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    parts = Path(folder).resolve().parts if os.path.isdir(folder) else tuple(re.split(r"[/\\]+", name))
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        organisation, _, repository = parts[-3].removeprefix("models--").rpartition("--")
        return f"{organisation or _LOCAL}/{repository}"
    found = recognize(name)
    if found is not None and found.by == "name":
        return found.spec.model_id
    own = "-".join(parts[-2:]) if len(parts) > 2 and _PLAIN_FOLDER.fullmatch(parts[-1]) else parts[-1]
    return f"{_LOCAL}/{re.sub(r'[^A-Za-z0-9._-]+', '-', own) or 'model'}"


def model_meta(
    it: Any,  # noqa: ANN401 - an encoder or reranker of this package
    *,
    kind: str,
    vectors: object,
    variant: dict[str, str],
    use_instructions: bool | None = None,
    dimension: int | None = None,
) -> Any:  # noqa: ANN401 - mteb's ModelMeta
    """Returns mteb's description of a model.

    Name and revision identify the weights: the revision is the digest of the content, which a copied folder keeps.
    `experiment_kwargs` identifies the way in which they are used. mteb makes a folder of results for each value of it,
    so that one precision, engine, policy or instruction is never taken for another.

    Args:
        it: `BgeEncoder`, `BgeM3Encoder` or `BgeReranker`.
        kind: mteb's model type, such as "dense" or "cross-encoder".
        vectors: Plain data on which results depend in addition to the variant. Its digest is in the description.
        variant: Readable properties of the variant, such as the policy.
        use_instructions: Whether texts get instructions.
        dimension: Length of the vectors.
    """
    mteb = import_mteb()
    model, name = it.backend, model_id(str(it.settings.model_name))
    spec: ModelSpec | None = model.spec
    from mteb.models.model_meta import ScoringFunction

    languages = [_LANGUAGES.get(language) for language in spec.languages] if spec else [None]
    facts = {
        "name": name,
        "revision": model.identity[:40],
        "languages": languages if None not in languages else None,
        "n_parameters": spec.parameters_millions * 1_000_000 if spec and spec.parameters_millions else None,
        "max_tokens": it.max_length,
        "embed_dim": dimension,
        "license": spec.licence if spec else None,
        "open_weights": True,
        "public_training_code": _CODE if spec else None,
        "framework": [_FRAMEWORKS[model.engine.name]] if model.engine.name in _FRAMEWORKS else [],
        "reference": None if name.startswith(f"{_LOCAL}/") else f"https://huggingface.co/{name}",
        "similarity_fn_name": ScoringFunction.COSINE if kind == "dense" else None,
        "use_instructions": use_instructions,
        "model_type": [kind],
        "experiment_kwargs": {
            "engine": model.engine.name,
            "precision": model.request.precision,
            "max_length": it.max_length,
            "settings": key_of({"vectors": vectors})[:12],
            **variant,
        },
    }
    return mteb.models.ModelMeta.create_empty(facts)


def with_data(meta: Any, digest: str) -> Any:  # noqa: ANN401 - mteb's ModelMeta
    """Returns a description under which results belong to local data.

    mteb 2.26 loads a complete result even if the revision of its data has changed, so the revision alone is not enough.
    """
    return meta.model_copy(update={"experiment_kwargs": {**meta.experiment_kwargs, "data": digest}})
