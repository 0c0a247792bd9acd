"""Finds the files that a request names, and refuses those that can't be used as an embedding model."""

from __future__ import annotations

from pathlib import Path

from bge_integrations.backend.checkpoint import Checkpoint
from bge_integrations.backend.pooling import NAMES_OF_CATALOGUE
from bge_integrations.backend.request import LoadRequest
from bge_integrations.catalogue import ModelSpec, find_model
from bge_integrations.errors import ModelNotFoundError, PoolingMismatchError, UnsupportedModelError


def locate_requested(request: LoadRequest) -> Checkpoint:
    """Finds a model's folder, asking the hub if it is not a local one.

    Raises:
        ModelNotFoundError: No such folder, no such model or revision, or no access to it.
        ModelNotCachedError: Not in the cache, and the hub can't be reached or must not be asked.
        ModelLoadError: The hub refused.
    """
    name = request.model_name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Checkpoint(folder.resolve(), name)
    if folder.exists():
        raise ModelNotFoundError(f"{name} is a file; model_name takes a folder or a hub id.")
    if _looks_like_path(name):
        raise ModelNotFoundError(
            f"There is no folder {name} (looked in {Path.cwd()}); check the path, or give a hub id such as "
            "'BAAI/bge-small-en-v1.5'."
        )
    from bge_integrations.backend.hub import fetch  # its client takes a while to import, for nothing in most cases

    return Checkpoint(fetch(request), name)


def vet(checkpoint: Checkpoint, request: LoadRequest) -> ModelSpec | None:
    """Checks a checkpoint before any weights are read.

    Returns:
        The catalogue's row, or None for a model that is no BGE.

    Raises:
        UnsupportedModelError: A model of another kind than was asked for.
        ModelNotFoundError: No model files, or no weights.
        UnsafeWeightsError: Pickled weights or custom code, not allowed.
        PoolingMismatchError: A BGE model whose files ask for another pooling.
    """
    spec = find_model(request.model_name) or find_model(checkpoint.folder)
    if request.purpose == "scores":
        _require_reranker(spec, request.model_name)
    else:
        _require_embedder(spec, request.model_name)
    checkpoint.require_loadable(
        allow_pickle_weights=request.allow_pickle_weights, trust_remote_code=request.trust_remote_code
    )
    if request.purpose == "scores":
        _require_scores(checkpoint)
    elif spec:
        _require_matching_pooling(spec, checkpoint)
    if request.purpose == "m3":
        _require_m3_files(checkpoint)
    return spec


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or "\\" in name or name.count("/") > 1


def _require_embedder(spec: ModelSpec | None, name: str) -> None:
    if spec is None or spec.kind == "embedder":
        return
    if spec.kind == "reranker":
        raise UnsupportedModelError(
            f"{name} is a reranker ({spec.model_id}): it scores pairs and gives no vectors. Load it with BgeReranker, "
            "or BgeRerank in LlamaIndex."
        )
    raise UnsupportedModelError(
        f"{name} ({spec.model_id}) is a base model for further training and gives no usable vectors; "
        "'BAAI/bge-m3' is the embedder made from it."
        if "m3" in spec.model_id
        else f"{name} ({spec.model_id}) is a base model for further training and gives no usable vectors."
    )


def _require_reranker(spec: ModelSpec | None, name: str) -> None:
    if spec is not None and spec.kind != "reranker":
        raise UnsupportedModelError(
            f"{name} is {spec.model_id}, which gives vectors and scores no pairs; a reranker is, for example, "
            "'BAAI/bge-reranker-v2-m3'."
        )


def _require_scores(checkpoint: Checkpoint) -> None:
    if not checkpoint.scores_pairs:
        made_for = ", ".join(map(str, checkpoint.config.get("architectures") or ())) or "nothing that it names"
        raise UnsupportedModelError(
            f"{checkpoint.name} is no reranker: its config.json says that it is made for {made_for}, while a reranker "
            "is a sequence classifier with one output, or a decoder."
        )


def _require_m3_files(checkpoint: Checkpoint) -> None:
    lacking = checkpoint.lacking_m3_files
    if lacking:
        raise UnsupportedModelError(
            f"{checkpoint.name} has no {' and no '.join(lacking)}, from which lexical weights and token vectors are "
            "computed; bge-m3 and what is fine-tuned from it have them. For dense vectors alone use BgeEncoder."
        )


def _require_matching_pooling(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    saved = checkpoint.pooling_modes
    expected = NAMES_OF_CATALOGUE[spec.pooling or "cls"]
    if saved is not None and saved != (expected,):
        raise PoolingMismatchError(
            f"{checkpoint.name} is {spec.model_id} or made from it, which uses {expected} pooling, but its "
            f"modules.json asks for {' + '.join(saved)}. If it really was trained so, its folder and config must not "
            "say that it is a BGE model (rename the folder and its recorded base model); if not, set the pooling in "
            f"{checkpoint.folder} to {expected}."
        )
