"""A checkpoint's files: what they say, and whether they may be loaded. Loads no weights itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_integrations.backend.digests import file_digest
from bge_integrations.backend.forking import cached
from bge_integrations.catalogue import M3_HEAD_FILES, Recognition, recognize
from bge_integrations.errors import ModelLoadError, ModelNotFoundError, UnsafeWeightsError

PICKLE_FILES = ("*.bin", "*.pt")

_FINGERPRINTED = ("*.safetensors", "*.json", "*.txt", "*.model", *PICKLE_FILES)
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

    @cached
    def recognition(self) -> Recognition | None:
        """The BGE model that it is or was made from, and how that was found out; None for any other model."""
        return recognize(self.name) or recognize(self.folder)

    @cached
    def config(self) -> dict[str, Any]:
        """The content of `config.json` of the transformer, {} where there is none."""
        config: dict[str, Any] = self._json(self.transformer_folder / "config.json", {})
        return config

    @cached
    def tokenizer_config(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json` beside the transformer, {} where there is none."""
        config: dict[str, Any] = self._json(self.transformer_folder / "tokenizer_config.json", {})
        return config

    @cached
    def modules(self) -> list[dict[str, Any]] | None:
        """The content of `modules.json`; None for a bare transformers checkpoint."""
        modules: list[dict[str, Any]] | None = self._json(self.folder / "modules.json", None)
        return modules

    @property
    def transformer_folder(self) -> Path:
        """The folder of the first module, which holds the weights."""
        return self.folder / self.modules[0].get("path", "") if self.modules else self.folder

    @property
    def transformer_weights(self) -> list[Path]:
        """The files that transformers reads the encoder's weights from; empty for an adapter."""
        folder = self.transformer_folder
        if (folder / "adapter_config.json").is_file():
            return []
        for name in ("model.safetensors", "pytorch_model.bin"):
            index = self._json(folder / f"{name}.index.json", {})
            if (folder / name).is_file():
                return [folder / name]
            if index:
                return [folder / file for file in dict.fromkeys(index["weight_map"].values())]
        return []

    @property
    def is_decoder(self) -> bool:
        """Whether it is a causal language model."""
        return self._is_made_for("ForCausalLM")

    @property
    def scores_pairs(self) -> bool:
        """Whether it has an output that can score a pair of texts."""
        return self.is_decoder or self._is_made_for("ForSequenceClassification")

    def _is_made_for(self, task: str) -> bool:
        return any(str(name).endswith(task) for name in self.config.get("architectures") or ())

    @property
    def lacking_m3_files(self) -> list[str]:
        """Names of the files that bge-m3 has, but not this folder."""
        return [name for name in M3_HEAD_FILES.values() if not (self.folder / name).is_file()]

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

    @cached
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
            pickled = sorted(path.name for pattern in PICKLE_FILES for path in folder.glob(pattern))
            pickled = [name for name in pickled if name not in (*_TRAINING_FILES, *M3_HEAD_FILES.values())]
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
        if "auto_map" not in self.config:
            return
        for unknown in self._architectures_unknown_to_transformers():
            raise UnsafeWeightsError(
                f"{self.name} needs its own code for the architecture {unknown!r}; read it, and if you trust it pass "
                "trust_remote_code=True."
            )

    def _architectures_unknown_to_transformers(self) -> Iterator[str]:
        """Yields names that transformers has no class for: without its code, another model would be loaded instead."""
        import transformers

        model_type = self.config.get("model_type")
        if model_type not in transformers.CONFIG_MAPPING:
            yield str(model_type)
        yield from (name for name in self.config.get("architectures") or () if not hasattr(transformers, str(name)))

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
