"""A checkpoint's files: where they are, what they say, and whether they may be loaded. Loads no weights itself."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bge_integrations.backend.digests import file_digest
from bge_integrations.catalogue import MODELS, find_model
from bge_integrations.errors import (
    ModelLoadError,
    ModelNotCachedError,
    ModelNotFoundError,
    UnsafeWeightsError,
)

logger = logging.getLogger(__name__)

# Everything an encoder needs, and none of the ONNX, OpenVINO, TensorFlow or Flax copies that repositories also hold.
_PLAIN_FILES = ("*.json", "*.txt", "*.model", "README.md", "*.safetensors")
_UNNEEDED_FILES = ("onnx/*", "openvino/*", "coreml/*", "gguf/*", "checkpoint-*")
_PICKLE_FILES = ("*.bin", "*.pt")
_FINGERPRINTED = ("*.safetensors", "*.json", "*.txt", "*.model", *_PICKLE_FILES)
_TRAINING_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder of model files.

    Attributes:
        folder: Where the files are.
        name: What the user called the model.
    """

    folder: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json` of the transformer, {} where there is none."""
        config: dict[str, Any] = self._json(self.transformer_folder / "config.json", {})
        return config

    @cached_property
    def modules(self) -> list[dict[str, Any]] | None:
        """The content of `modules.json`; None for a bare transformers checkpoint."""
        modules: list[dict[str, Any]] | None = self._json(self.folder / "modules.json", None)
        return modules

    @property
    def transformer_folder(self) -> Path:
        """The folder of the first module, which holds the weights."""
        return self.folder / self.modules[0].get("path", "") if self.modules else self.folder

    @property
    def pooling_modes(self) -> tuple[str, ...] | None:
        """The pooling that the checkpoint's own files ask for; None where they say nothing."""
        for module in self.modules or ():
            if module.get("type", "").rsplit(".", 1)[-1] == "Pooling":
                config = self._json(self.folder / module.get("path", "") / "config.json", {})
                mode = config.get("pooling_mode")
                if mode is None:
                    mode = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
                return (mode,) if isinstance(mode, str) else tuple(mode)
        return None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, tokenizer and configuration, by name and content, wherever the folder lies."""
        folders = dict.fromkeys([self.folder, *self._module_folders()])
        files = {path for folder in folders for pattern in _FINGERPRINTED for path in folder.glob(pattern)}
        digest = hashlib.sha256()
        for path in sorted(files):
            if path.name not in _TRAINING_FILES:
                digest.update(f"{path.relative_to(self.folder)}\0{file_digest(path)}\n".encode())
        return digest.hexdigest()

    def require_loadable(self, *, allow_pickle_weights: bool, trust_remote_code: bool) -> None:
        """Refuses a folder without weights, and one that would run code which was not allowed by name.

        Raises:
            ModelNotFoundError: No model files, or no weights.
            UnsafeWeightsError: Pickled weights or custom code, not allowed.
        """
        if not self.config and not (self.transformer_folder / "adapter_config.json").is_file():
            raise ModelNotFoundError(
                f"{self.folder} holds no config.json, so it is no model folder (it holds: {self._listing()})."
            )
        self._require_safe_weights(allow_pickle_weights)
        if not trust_remote_code:
            self._require_no_custom_code()

    def _require_safe_weights(self, allow_pickle_weights: bool) -> None:
        for index, folder in enumerate(self._module_folders()):
            if not folder.is_dir() or any(folder.glob("*.safetensors")):
                continue
            pickled = sorted(path.name for pattern in _PICKLE_FILES for path in folder.glob(pattern))
            pickled = [name for name in pickled if name not in _TRAINING_FILES]
            if pickled and not allow_pickle_weights:
                raise UnsafeWeightsError(
                    f"{self.name} has no safetensors weights in {folder}, only {', '.join(pickled)}, and unpickling "
                    "can run code. If you trust whoever made it, pass allow_pickle_weights=True; or convert it once "
                    "with `AutoModel.from_pretrained(folder).save_pretrained(folder)`."
                )
            if not pickled and index == 0:
                raise ModelNotFoundError(
                    f"{folder} holds no weights (model.safetensors); it holds: {self._listing()}. Where the hub "
                    "repository has only pytorch_model.bin, pass allow_pickle_weights=True to fetch and load that."
                )

    def _require_no_custom_code(self) -> None:
        for module in self.modules or ():
            if not module.get("type", "").startswith("sentence_transformers."):
                raise UnsafeWeightsError(
                    f"{self.name} needs its own code for the module {module.get('type')!r}; read it, and if you trust "
                    "it pass trust_remote_code=True."
                )
        if "auto_map" in self.config and not _knows_architecture(self.config.get("model_type")):
            raise UnsafeWeightsError(
                f"{self.name} needs its own code for the architecture {self.config.get('model_type')!r}; read it, and "
                "if you trust it pass trust_remote_code=True."
            )

    def _module_folders(self) -> list[Path]:
        if not self.modules:
            return [self.folder]
        return [self.folder / module.get("path", "") for module in self.modules]

    def _listing(self) -> str:
        names = sorted(path.name for path in self.folder.iterdir())
        return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"

    def _json(self, path: Path, default: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return default
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{path} can't be read as JSON ({error}); fetch the model again.") from error


def locate(
    name: str,
    *,
    revision: str | None = None,
    cache_folder: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle_weights: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Finds a model's folder, asking the hub if it is not a local one.

    This is the only place that reaches the network. Files go to huggingface_hub's own cache, which transformers and
    sentence-transformers use too, so nothing is fetched twice.

    Args:
        name: Local folder, hub id, or the bare name of a BGE model.
        revision: Branch, tag or commit on the hub.
        cache_folder: Where hub files are kept; else `SENTENCE_TRANSFORMERS_HOME`, else the hub's usual cache.
        token: Hub token, or False to send none.
        local_files_only: Never ask the hub.
        allow_pickle_weights: Fetch pickled weights too.
        trust_remote_code: Fetch Python files too.

    Raises:
        ModelNotFoundError: No such folder, no such model or revision, or no access to it.
        ModelNotCachedError: Not in the cache, and the hub can't be reached or must not be asked.
    """
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
    patterns = [*_PLAIN_FILES]
    if allow_pickle_weights:
        patterns += _PICKLE_FILES
    if trust_remote_code:
        patterns.append("*.py")
    return Checkpoint(_fetch(name, revision, cache_folder, token, local_files_only, patterns), name)


def _fetch(
    name: str,
    revision: str | None,
    cache_folder: str | None,
    token: str | bool | None,
    local_files_only: bool,
    patterns: list[str],
) -> Path:
    """Returns the folder of a hub model, fetching what is missing of it."""
    cache = cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    repository = _hub_id(name)
    try:
        found = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=list(_UNNEEDED_FILES),
        )
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repository} is gated: ask for access on its hub page, then pass token=… or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repository} has no revision {revision!r}; leave revision=None for main.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"There is no folder {name!r} (looked in {Path.cwd()}) and no model {repository!r} on the hub that this "
            f"token may see.{_suggestion(name)}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotCachedError(_not_cached_message(repository, revision, cache, local_files_only)) from error
    except HfHubHTTPError as error:
        raise ModelLoadError(f"The hub refused to give {repository}: {error}") from error
    logger.info("%s: using %s", repository, found)
    return Path(found)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or "\\" in name or name.count("/") > 1


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


def _not_cached_message(repository: str, revision: str | None, cache: str | None, local_files_only: bool) -> str:
    where = cache or huggingface_hub.constants.HF_HUB_CACHE
    at = f" at revision {revision!r}" if revision else ""
    if local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE:
        why = "and the hub must not be asked (local_files_only=True or HF_HUB_OFFLINE=1)"
    else:
        why = "and the hub can't be reached"
    return (
        f"{repository}{at} is not in the cache {where}, {why}. Either fetch it once on a machine with a "
        f"network (`hf download {repository}`) and copy the folder, giving its path as model_name; or set "
        "cache_folder to where it is; or set HF_ENDPOINT to a mirror that you can reach."
    )


def _knows_architecture(model_type: object) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING
