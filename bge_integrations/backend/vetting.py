"""Finds the files that a request names, and refuses those that can't be used as an embedding model."""

from __future__ import annotations

from bge_integrations.backend.checkpoint import Checkpoint, locate
from bge_integrations.backend.pooling import NAMES_OF_CATALOGUE
from bge_integrations.backend.request import LoadRequest
from bge_integrations.catalogue import ModelSpec, find_model
from bge_integrations.errors import PoolingMismatchError, UnsupportedModelError


def locate_requested(request: LoadRequest) -> Checkpoint:
    """Finds the files; see `checkpoint.locate`."""
    return locate(
        request.model_name,
        revision=request.revision,
        cache_folder=request.cache_folder,
        token=request.token,
        local_files_only=request.local_files_only,
        allow_pickle_weights=request.allow_pickle_weights,
        trust_remote_code=request.trust_remote_code,
    )


def vet(checkpoint: Checkpoint, request: LoadRequest) -> ModelSpec | None:
    """Checks a checkpoint before any weights are read.

    Returns:
        The catalogue's row, or None for a model that is no BGE.

    Raises:
        UnsupportedModelError: Not an embedding model.
        ModelNotFoundError: No model files, or no weights.
        UnsafeWeightsError: Pickled weights or custom code, not allowed.
        PoolingMismatchError: A BGE model whose files ask for another pooling.
    """
    spec = find_model(request.model_name) or find_model(checkpoint.folder)
    _require_embedder(spec, request.model_name)
    checkpoint.require_loadable(
        allow_pickle_weights=request.allow_pickle_weights, trust_remote_code=request.trust_remote_code
    )
    if spec:
        _require_matching_pooling(spec, checkpoint)
    return spec


def _require_embedder(spec: ModelSpec | None, name: str) -> None:
    if spec is None or spec.kind == "embedder":
        return
    if spec.kind == "reranker":
        raise UnsupportedModelError(f"{name} is a reranker ({spec.model_id}): it scores pairs and gives no vectors.")
    raise UnsupportedModelError(
        f"{name} ({spec.model_id}) is a base model for further training and gives no usable vectors; "
        "'BAAI/bge-m3' is the embedder made from it."
        if "m3" in spec.model_id
        else f"{name} ({spec.model_id}) is a base model for further training and gives no usable vectors."
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
