"""Fetches a model from the hub. No other module accesses the network."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from bge_integrations.backend.checkpoint.location import did_you_mean, no_folder, read_ref
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.checkpoint.weights import PICKLE_FILES
from bge_integrations.backend.display.bars import steady
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.catalogue import M3_HEAD_FILES, MODELS, find_model
from bge_integrations.errors import ModelLoadError, ModelNotCachedError, ModelNotFoundError

logger = get_logger(__name__)

# Everything that an encoder needs, without the ONNX, OpenVINO, TensorFlow and Flax copies in many repositories.
_PLAIN_FILES = ("*.json", "*.txt", "*.model", "README.md", "*.safetensors")
_TEXT_FILES = ("*.json", "*.txt", "*.model", "README.md")
"""The tokenizer, and what else says how a model reads texts."""
_UNNEEDED_FILES = ("onnx/*", "openvino/*", "coreml/*", "gguf/*", "checkpoint-*")


def fetch(request: LoadRequest, *, weights: bool = True) -> Path:
    """Returns the folder of a hub model, and fetches its missing files.

    The files go to the request's cache folder, else to `SENTENCE_TRANSFORMERS_HOME`, else to huggingface_hub's own
    cache. transformers and sentence-transformers use that cache too, so nothing is fetched twice.

    Raises:
        ModelNotFoundError: No such model or revision, or no access to it.
        ModelNotCachedError: The model is not in the cache, and the hub can't be reached or must not be asked.
        ModelLoadError: The hub refused, or the fetch failed on the network or the disk.
    """
    repository, cache = _hub_id(request.model_name), _cache(request)
    try:
        found = _snapshot(request, repository, cache, weights=weights)
    except GatedRepoError:
        raise ModelNotFoundError(
            f"{repository} is gated: ask for access on its hub page, then pass token=… or run `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFoundError(
            f"{repository} has no revision {request.revision!r}; leave revision=None for main."
        ) from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"{no_folder(request.model_name)} And there is no model {repository!r} on the hub that this token may "
            f"access.{did_you_mean(request.model_name)}"
        ) from None
    except HFValidationError:
        raise ModelNotFoundError(
            f"{no_folder(request.model_name)} And {repository!r} can't be the id of a model on the hub."
            f"{did_you_mean(request.model_name)}"
        ) from None
    except LocalEntryNotFoundError as error:
        raise ModelNotCachedError(_not_cached_message(request, repository, cache, error)) from None
    except HfHubHTTPError as error:
        raise ModelLoadError(f"The hub refused to give {repository}: {error}") from error
    except Exception as error:  # errors of the network, a proxy, or a full or read-only disk have no common class
        raise ModelLoadError(f"{repository} can't be fetched into {cache}: {type(error).__name__}: {error}") from error
    logger.info("%s: using %s", repository, found)
    return Path(found)


def _snapshot(request: LoadRequest, repository: str, cache: str, *, weights: bool) -> str:
    """Fetches the files or finds them in the cache. bge-m3's heads may be missing there if they are not needed."""
    patterns = [*_PLAIN_FILES]
    if request.allow_pickle_weights:
        patterns += PICKLE_FILES
    if request.trust_remote_code:
        patterns.append("*.py")
    # Always fetched: the files are small, and they show that a model was made from bge-m3, whose pooling is known.
    heads = list(M3_HEAD_FILES.values())
    download = partial(
        huggingface_hub.snapshot_download,
        repository,
        revision=request.revision,
        cache_dir=cache,
        token=request.token,
        ignore_patterns=list(_UNNEEDED_FILES),
        tqdm_class=steady(tqdm),
    )
    if not weights:
        return str(download(local_files_only=request.local_files_only, allow_patterns=list(_TEXT_FILES)))
    try:
        return str(download(local_files_only=request.local_files_only, allow_patterns=[*patterns, *heads]))
    except LocalEntryNotFoundError as error:
        if request.purpose == "m3" or not _is_partly_there(error):
            raise
        try:
            return str(download(local_files_only=True, allow_patterns=patterns))
        except LocalEntryNotFoundError:
            raise error from error.__cause__


def cached_snapshot(request: LoadRequest) -> Path | None:
    """Returns the folder that a hub model was last fetched into; `None` if it was not fetched. Uses no network."""
    repository = _hub_id(request.model_name)
    folder = Path(_cache(request)) / f"models--{repository.replace('/', '--')}"
    revision = request.revision or "main"
    snapshot = folder / "snapshots" / (read_ref(folder, revision) or revision)
    return snapshot if os.path.isdir(snapshot) else None


def _cache(request: LoadRequest) -> str:
    asked_for = request.cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    return asked_for or constants.HF_HUB_CACHE


def _hub_id(name: str) -> str:
    if "/" in name:
        return name
    spec = find_model(name)
    # As in sentence-transformers, a name without an organisation is one of its own models.
    return spec.model_id if spec else f"sentence-transformers/{name}"


def _is_partly_there(error: LocalEntryNotFoundError) -> bool:
    return getattr(error, "snapshot_path", None) is not None  # IncompleteSnapshotError is missing in older clients


def _not_cached_message(request: LoadRequest, repository: str, cache: str, error: LocalEntryNotFoundError) -> str:
    name = request.model_name
    is_known = any(repository == spec.model_id for spec in MODELS)
    folder = "" if is_known else f"{no_folder(name)} "
    at = f" at revision {request.revision!r}" if request.revision else ""
    if request.local_files_only or constants.HF_HUB_OFFLINE:
        why = "the hub must not be asked (local_files_only=True or HF_HUB_OFFLINE=1)"
    else:
        reason = f": {type(error.__cause__).__name__}: {error.__cause__}" if error.__cause__ else ""
        why = f"the hub can't be reached{reason}"
    if not _is_partly_there(error):
        state = f"{repository}{at} is not in the cache {cache}, and {why}."
    else:
        # The first sentence of the client's text names the missing files.
        state = f"{repository}{at} is in the cache {cache} only in part, and {why}: {str(error).split('. ')[0]}."
    meant = did_you_mean(name)
    either = f"{meant} If the name is right, either" if meant else " Either"
    return (
        f"{folder}{state}{either} fetch it once on a machine with a network (`hf download {repository}`), copy the "
        "folder and give its path as model_name; or set cache_folder to the cache that has it; or set HF_ENDPOINT to "
        "a mirror that you can reach."
    )
