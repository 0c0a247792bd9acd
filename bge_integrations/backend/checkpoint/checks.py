"""Finds the files of a requested model and refuses those that can't be used as an embedding model or a reranker."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.genuine import require_genuine_texts, require_open_folder
from bge_integrations.backend.checkpoint.location import local_folder
from bge_integrations.backend.checkpoint.lora import base_of
from bge_integrations.backend.checkpoint.manifest import is_prepared
from bge_integrations.backend.checkpoint.questions import require_plain_decoder, require_question, trained_question
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.checkpoint.weights import ADAPTER_CONFIG, WeightRules
from bge_integrations.backend.model.pooling import NAMES_OF_CATALOGUE, NAMES_OF_SETTING
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import (
    ModelLoadError,
    ModelNotCachedError,
    ModelNotFoundError,
    PoolingMismatchError,
    UnsupportedModelError,
)
from bge_integrations.texts import about_file_name


def locate_requested(request: LoadRequest) -> Checkpoint:
    """Finds a model's folder, on this machine or on the hub. For an adapter it finds the base model's folder too.

    Raises:
        ModelNotFoundError: No such folder, model or revision, or no access to it.
        ModelNotCachedError: The model is not in the cache, and the hub can't be reached or must not be asked.
        ModelLoadError: The fetch failed, or the content of a file does not match its name.
        UnsupportedModelError: The base of the adapter is an adapter.
    """
    folder = _located(request)
    base_request = request_for_base(folder, request)
    return Checkpoint(folder, request.model_name, _base(base_request, request) if base_request else None)


def request_for_base(folder: Path, request: LoadRequest) -> LoadRequest | None:
    """Returns the request for an adapter's base, with the adapter's settings; `None` for a whole model.

    Raises:
        ModelLoadError: The adapter's configuration can't be read, or names no base.
    """
    base = base_of(folder)
    if base is None:
        return None
    name, recorded = base
    # An adapter in a local folder is not fetched, so a given revision means its base.
    given = request.revision if local_folder(request.model_name, request.revision) else None
    return dataclasses.replace(request, model_name=name, revision=recorded or given)


def _located(request: LoadRequest) -> Path:
    folder = local_folder(request.model_name, request.revision)
    if folder is None:
        from bge_integrations.backend.checkpoint.hub import (
            fetch,  # the import of the hub's client is slow, and most calls don't need it
        )

        folder = fetch(request).resolve()
    if found := about_file_name(str(folder)):  # a parent folder's name, such as the current folder's, can be at fault
        raise ModelLoadError(f"{str(folder)!r} {found}")
    if not is_prepared(folder):  # `PreparedFolder.open` checks prepared folders
        require_open_folder(folder)
        require_genuine_texts(folder)
    return folder


def _base(request: LoadRequest, of: LoadRequest) -> Checkpoint:
    try:
        folder = _located(request)
    except (ModelNotFoundError, ModelNotCachedError) as error:
        raise type(error)(
            f"{of.model_name} is an adapter of the base model {request.model_name!r}, which can't be found: {error} If "
            "the base is in another folder, write its path into adapter_config.json as base_model_name_or_path."
        ) from None
    if (folder / ADAPTER_CONFIG).is_file():
        raise UnsupportedModelError(
            f"{of.model_name} is an adapter of {request.model_name!r}, which is or contains an adapter itself. Merge "
            "that adapter into its base model, and give the folder of the whole model as base_model_name_or_path."
        )
    return Checkpoint(folder, request.model_name)


def vet(checkpoint: Checkpoint, request: LoadRequest, *, to_train: bool = False) -> ModelSpec | None:
    """Checks a checkpoint before any weights are read.

    Args:
        checkpoint: The model's files.
        request: The load request.
        to_train: Whether it is trained, which a base model without usable vectors is for.

    Returns:
        The catalogue's row; `None` for a model that is not a BGE model.

    Raises:
        UnsupportedModelError: The model is not of the requested kind.
        ModelNotFoundError: No model files, or no weights.
        UnsafeWeightsError: Pickled weights or custom code that the user has not allowed.
        ModelLoadError: A file is damaged, or its content does not match its name.
        PoolingMismatchError: The model has the name of a BGE model, but its files ask for another pooling.
    """
    recognition = checkpoint.recognition
    spec = recognition.spec if recognition else None
    if request.purpose == "scores":
        _require_reranker(spec, request.model_name)
        if checkpoint.is_decoder:
            _require_question(checkpoint, request)
    else:
        if not (to_train and spec is not None and spec.kind == "base"):
            _require_embedder(spec, request.model_name)
    checkpoint.require_loadable(
        WeightRules.of(request),
        trust_remote_code=request.trust_remote_code,
        own_attention="attn_implementation" in request.transformers_kwargs.as_dicts()["model_kwargs"],
    )
    if request.purpose == "scores":
        _require_scores(checkpoint)
    elif recognition and recognition.by == "name" and request.pooling is None:
        _require_matching_pooling(recognition.spec, checkpoint)
    if request.purpose == "m3":
        _require_m3_files(checkpoint)
    return spec


def pooling_is_guessed(checkpoint: Checkpoint, request: LoadRequest) -> str | None:
    """Returns a warning, with its fix, if the pooling of a model is unknown; `None` if it is known."""
    known = request.purpose != "vectors" or request.pooling or checkpoint.recognition or checkpoint.modules is not None
    if known:
        return None
    return (
        f"The pooling of {checkpoint.name} is unknown: it has no modules.json, and neither its name nor its files name "
        "a BGE model. Mean pooling without normalisation is used, as in sentence-transformers. For a model that was "
        "fine-tuned from a BGE encoder, pass pooling='cls', normalize=True. For any other model, pass the pooling that "
        "it was trained with ('cls', 'mean' or 'last'). If its hub repository has a modules.json, fetch the whole "
        "repository."
    )


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
            f"{checkpoint.name} is not a reranker: its config.json says that it is made for {made_for}. A reranker is "
            "a sequence classifier with one output, or a decoder."
        )


def _require_question(checkpoint: Checkpoint, request: LoadRequest) -> None:
    recognition = checkpoint.recognition
    if not (recognition and recognition.by == "name" and trained_question(recognition.spec)):
        require_plain_decoder(checkpoint)
    own = trained_question(recognition.spec if recognition else None)
    require_question(checkpoint.name, own if request.decoder_question is None else request.decoder_question)


def _require_m3_files(checkpoint: Checkpoint) -> None:
    lacking = checkpoint.lacking_m3_files
    if lacking:
        raise UnsupportedModelError(
            f"{checkpoint.name} has no {' and no '.join(lacking)}, from which lexical weights and token vectors are "
            "computed. bge-m3 and models that are fine-tuned from it have these files. For dense vectors alone use "
            "BgeEncoder."
        )


def _require_matching_pooling(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    saved = checkpoint.pooling_modes
    expected = NAMES_OF_CATALOGUE[spec.pooling or "cls"]
    if saved is not None and saved != (expected,):
        raise PoolingMismatchError(
            f"{checkpoint.name} has the name of {spec.model_id}, which uses {expected} pooling, but its modules.json "
            f"asks for {' + '.join(saved)}. Pass {_choices(saved, expected)}."
        )


def _choices(saved: tuple[str, ...], expected: str) -> str:
    settings = {theirs: ours for ours, theirs in NAMES_OF_SETTING.items()}
    catalogue = f"pooling={settings[expected]!r} to use it as the BGE model"
    if len(saved) == 1 and saved[0] in settings:
        return f"pooling={settings[saved[0]]!r} if it was trained as its files say, or {catalogue}"
    return f"{catalogue}; to use it as its files say, rename its folder"
