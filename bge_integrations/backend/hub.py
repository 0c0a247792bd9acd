"""Fetches a model from the hub. This is the only place that reaches the network."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bge_integrations.backend.checkpoint import PICKLE_FILES
from bge_integrations.backend.request import LoadRequest
from bge_integrations.catalogue import M3_HEAD_FILES, MODELS, find_model
from bge_integrations.errors import ModelLoadError, ModelNotCachedError, ModelNotFoundError

logger = logging.getLogger(__name__)

# Everything an encoder needs, and none of the ONNX, OpenVINO, TensorFlow or Flax copies that repositories also hold.
_PLAIN_FILES = ("*.json", "*.txt", "*.model", "README.md", "*.safetensors")
_UNNEEDED_FILES = ("onnx/*", "openvino/*", "coreml/*", "gguf/*", "checkpoint-*")


def fetch(request: LoadRequest) -> Path:
    """Returns the folder of a hub model, fetching what is missing of it.

    Files go to the cache folder asked for, else to `SENTENCE_TRANSFORMERS_HOME`, else to huggingface_hub's own cache,
    which transformers and sentence-transformers use too, so that nothing is fetched twice.

    Raises:
        ModelNotFoundError: No such model or revision, or no access to it.
        ModelNotCachedError: Not in the cache, and the hub can't be reached or must not be asked.
        ModelLoadError: The hub refused.
    """
    patterns = [*_PLAIN_FILES]
    if request.allow_pickle_weights:
        patterns += PICKLE_FILES
    if request.purpose == "m3":
        patterns += M3_HEAD_FILES.values()
    if request.trust_remote_code:
        patterns.append("*.py")
    cache = request.cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    name = request.model_name
    repository = _hub_id(name)
    try:
        found = huggingface_hub.snapshot_download(
            repository,
            revision=request.revision,
            cache_dir=cache,
            token=request.token,
            local_files_only=request.local_files_only,
            allow_patterns=patterns,
            ignore_patterns=list(_UNNEEDED_FILES),
        )
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repository} is gated: ask for access on its hub page, then pass token=… or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repository} has no revision {request.revision!r}; leave revision=None for main."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"There is no folder {name!r} (looked in {Path.cwd()}) and no model {repository!r} on the hub that this "
            f"token may see.{_suggestion(name)}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotCachedError(_not_cached_message(request, repository, cache)) from error
    except HfHubHTTPError as error:
        raise ModelLoadError(f"The hub refused to give {repository}: {error}") from error
    logger.info("%s: using %s", repository, found)
    return Path(found)


def _hub_id(name: str) -> str:
    if "/" in name:
        return name
    spec = find_model(name)
    # sentence-transformers reads a name without an organisation as one of its own.
    return spec.model_id if spec else f"sentence-transformers/{name}"


def _suggestion(name: str) -> str:
    short = name.rsplit("/", 1)[-1].lower()
    near = [spec.model_id for spec in MODELS if short in spec.model_id.lower()]
    return f" Did you mean {near[0]!r}?" if near else ""


def _not_cached_message(request: LoadRequest, repository: str, cache: str | None) -> str:
    where = cache or huggingface_hub.constants.HF_HUB_CACHE
    at = f" at revision {request.revision!r}" if request.revision else ""
    if request.local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE:
        why = "and the hub must not be asked (local_files_only=True or HF_HUB_OFFLINE=1)"
    else:
        why = "and the hub can't be reached"
    return (
        f"{repository}{at} is not in the cache {where}, {why}. Either fetch it once on a machine with a "
        f"network (`hf download {repository}`) and copy the folder, giving its path as model_name; or set "
        "cache_folder to where it is; or set HF_ENDPOINT to a mirror that you can reach."
    )
