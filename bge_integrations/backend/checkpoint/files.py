"""A checkpoint's files: their content, and whether they may be loaded. Loads no weights itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_integrations._optional import TORCH, require
from bge_integrations.backend.checkpoint.code import refuse_named_code
from bge_integrations.backend.checkpoint.contents import (
    CONFIG,
    MODULES,
    POOLING,
    ROUTERS,
    TOKENIZER,
    module_class,
    read_json_files,
)
from bge_integrations.backend.checkpoint.digests import Digests, file_digest
from bge_integrations.backend.checkpoint.formats import what_lies_there
from bge_integrations.backend.checkpoint.genuine import (
    has_vocabulary,
    require_genuine_texts,
    require_open_folder,
    unreadable,
)
from bge_integrations.backend.checkpoint.json_files import OBJECT, Kind, MalformedJsonError, read_json
from bge_integrations.backend.checkpoint.lora import require_runnable
from bge_integrations.backend.checkpoint.state import model_files
from bge_integrations.backend.checkpoint.weights import (
    ADAPTER_CONFIG,
    TRANSFORMER,
    Module,
    WeightRules,
    inside,
    opened_files,
    require_adapter_weights,
    require_weights,
)
from bge_integrations.backend.engines.architecture import ARCHITECTURES
from bge_integrations.backend.guarantees.forks import cached
from bge_integrations.catalogue import M3_HEAD_FILES, Recognition, recognize
from bge_integrations.errors import ModelLoadError, ModelNotFoundError, UnsafeWeightsError, UnsupportedModelError

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
        folder: Folder of the files.
        name: The model's name as the user wrote it.
        base: For an adapter that comes without its base model, that model; `None` otherwise.
    """

    folder: Path
    name: str
    base: Checkpoint | None = None

    @cached
    def recognition(self) -> Recognition | None:
        """The BGE model that it is or was made from, and how this was recognised; `None` for any other model."""
        return recognize(self.name) or recognize(self.folder)

    @cached
    def config(self) -> dict[str, Any]:
        """The content of `config.json` of the transformer or of an adapter's base; {} if there is no such file."""
        folder = self.base.folder if self.base else self.transformer_folder
        config: dict[str, Any] | None = self._json(folder / "config.json", CONFIG)
        return config or {}

    @cached
    def tokenizer_config(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json` beside the transformer; {} if there is no such file."""
        config: dict[str, Any] | None = self._json(self.transformer_folder / "tokenizer_config.json", TOKENIZER)
        return config or {}

    @cached
    def modules(self) -> list[dict[str, Any]] | None:
        """The content of `modules.json`; `None` for a bare transformers checkpoint."""
        modules: list[dict[str, Any]] | None = self._json(self.folder / "modules.json", MODULES)
        return modules

    @property
    def transformer_folder(self) -> Path:
        """The folder of the first module, which contains the transformer's weights."""
        return self.folder / self.modules[0]["path"] if self.modules else self.folder

    def transformer_weights(self, rules: WeightRules) -> list[Path]:
        """Returns the files that transformers reads the encoder's weights from."""
        return opened_files(self._modules()[0], self.config, rules)

    @property
    def is_decoder(self) -> bool:
        """Whether it is a causal language model."""
        return self._is_made_for("ForCausalLM")

    @property
    def scores_pairs(self) -> bool:
        """Whether it has an output that can score a pair of texts."""
        return self.is_decoder or self._is_made_for("ForSequenceClassification")

    def _is_made_for(self, task: str) -> bool:
        return any(name.endswith(task) for name in self.config.get("architectures") or ())

    @property
    def lacking_m3_files(self) -> list[str]:
        """Names of the files of bge-m3's heads that are missing from this folder."""
        return [name for name in M3_HEAD_FILES.values() if not (self.folder / name).is_file()]

    @property
    def pooling_modes(self) -> tuple[str, ...] | None:
        """The pooling in the checkpoint's own files; `None` if they don't say."""
        for module in self.modules or ():
            if module_class(module["type"]) == "Pooling":
                config = self._json(self.folder / module["path"] / "config.json", POOLING) or {}
                mode = config.get("pooling_mode")
                if mode is None:
                    mode = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
                return (mode,) if isinstance(mode, str) else tuple(mode)
        return None

    @property
    def fingerprint(self) -> str:
        """Digest of weights, tokenizer and configuration, by name and content. The folder's own path is not in it.

        Raises:
            ModelLoadError: A file can't be read.
        """
        return self.digests.content

    @cached
    def digests(self) -> Digests:
        """Digests of all files, of the weights, and of the tokenizer.

        Raises:
            ModelLoadError: A file can't be read.
        """
        files = model_files(self.folder, (module.folder for module in self._modules()))
        found = {path.relative_to(self.folder).as_posix(): _digest_of(path) for path in files}
        return Digests.of_files(found, self.base.digests if self.base else None)

    def require_loadable(self, rules: WeightRules, *, trust_remote_code: bool, own_attention: bool = False) -> None:
        """Refuses a folder without weights, damaged files, and code that the user has not allowed.

        Args:
            rules: Rules for the weights that may be read.
            trust_remote_code: Whether code in the checkpoint, or named by it, may run.
            own_attention: Whether the user names the implementation of attention.

        Raises:
            ModelNotFoundError: No model files, no weights, or only some of the weights.
            UnsafeWeightsError: Pickled weights, a file outside the folder, or code in the checkpoint or named by it,
                which the user has not allowed.
            ModelLoadError: The content of a file does not match its name, or a JSON file is damaged.
            UnsupportedModelError: The adapter can't be run here, or the first module is not a transformer.
            MissingExtraError: The model is an adapter, and peft is not installed.
        """
        if self.base:
            self.base.require_loadable(
                rules.of_base(self.base.name), trust_remote_code=trust_remote_code, own_attention=own_attention
            )
        modules = self._modules()
        for folder in {module.folder: None for module in modules if module.folder != self.folder}:
            require_genuine_texts(folder)
        try:
            files = list(read_json_files(self.folder, self.modules))
        except MalformedJsonError as error:
            raise _damaged(error) from error
        if not trust_remote_code:
            refuse_named_code(self.name, files, own_attention=own_attention)
        if not modules[0].is_transformer:
            raise made_of_others(self.name, (_class_name(listed["type"]) for listed in self.modules or ()))
        self._require_module_folders(modules)
        if not self.config and not rules.model_kwargs.get("gguf_file"):
            raise ModelNotFoundError(
                f"{self.folder} has no config.json, so it is not a model folder. "
                f"{what_lies_there(self.folder, pickles_allowed=rules.allow_pickle)}"
            )
        self._require_safe_weights(modules, rules)
        self._require_vocabulary()
        if not trust_remote_code:
            self._require_no_custom_code()

    def _require_module_folders(self, modules: list[Module]) -> None:
        for module in modules:
            # Normalize saves no files, and git does not keep empty folders.
            if module.folder == self.folder or module.kind == "Normalize":
                continue
            if module.folder.is_dir():
                require_open_folder(module.folder)
            if not any(module.folder.glob("*.json")):
                state = "it has no configuration" if module.folder.is_dir() else "it is missing"
                raise ModelNotFoundError(
                    f"{self.folder / 'modules.json'} names the folder {module.folder.relative_to(self.folder)} for "
                    f"the model's {module.kind}, but {state}: the model was fetched or copied only in part. "
                    "Fetch or copy it again, with its folders."
                )

    def _require_safe_weights(self, modules: list[Module], rules: WeightRules) -> None:
        if (self.transformer_folder / ADAPTER_CONFIG).is_file():
            if self.transformer_folder != self.folder:
                raise UnsupportedModelError(
                    f"{self.name} has an adapter in the folder {self.transformer_folder.name}; only an adapter beside "
                    "modules.json can be run. Merge it into its base model, and give the folder of the whole model."
                )
            require_adapter_weights(self.folder, rules)
            require_runnable(self.name, self.folder)
        elsewhere = rules.model_kwargs.get("subfolder")
        for module in modules:
            if module.is_first and elsewhere:
                require_weights(dataclasses.replace(module, folder=self.folder / elsewhere), self.config, rules)
            elif not (module.is_first and self.base):
                require_weights(module, self.config, rules)

    def _require_vocabulary(self) -> None:
        """Refuses an encoder without a vocabulary, for which transformers reports an unknown model."""
        folders = [self.transformer_folder, *([self.base.folder] if self.base else [])]
        if self.config.get("model_type") in ARCHITECTURES and not any(map(has_vocabulary, folders)):
            raise ModelNotFoundError(
                f"{self.transformer_folder} has no tokenizer (tokenizer.json, or a vocabulary such as vocab.txt): "
                "the model was saved without it, or fetched or copied only in part. Save or copy the tokenizer there."
            )

    def _require_no_custom_code(self) -> None:
        if "auto_map" not in self.config:
            return
        for unknown in self._architectures_unknown_to_transformers():
            raise UnsafeWeightsError(
                f"{self.name} needs its own code for the architecture {unknown!r}. Read the code; if you trust it, "
                "pass trust_remote_code=True."
            )

    def _architectures_unknown_to_transformers(self) -> Iterator[str]:
        """Yields names without a class in transformers, which would load another model instead."""
        transformers = require("transformers", extra=TORCH)
        model_type = self.config.get("model_type")
        if model_type not in transformers.CONFIG_MAPPING:
            yield str(model_type)
        yield from (name for name in self.config.get("architectures") or () if not hasattr(transformers, str(name)))

    def _modules(self) -> list[Module]:
        """Returns the modules, including those inside a router."""
        if not self.modules:
            return [Module(self.folder, TRANSFORMER, is_first=True)]
        found = []
        for index, listed in enumerate(self.modules):
            module = self._module(self.folder, listed["path"], listed["type"], is_first=index == 0)
            found += [module, *self._routes(module)]
        return found

    def _module(self, folder: Path, path: object, kind: object, *, is_first: bool) -> Module:
        place = inside(folder, path, self.folder / "modules.json")
        return Module(place, _class_name(kind), is_first)

    def _routes(self, module: Module) -> Iterator[Module]:
        if module.kind in ROUTERS:
            config = self._json(module.folder / "router_config.json", OBJECT)
            types = (config or self._json(module.folder / "config.json", OBJECT) or {}).get("types")
            for path, kind in types.items() if isinstance(types, dict) else ():
                yield self._module(module.folder, path, kind, is_first=False)

    def _json(self, path: Path, kind: Kind) -> Any:  # noqa: ANN401 - what the kind says
        try:
            return read_json(path, kind)
        except MalformedJsonError as error:
            raise _damaged(error) from error


def _digest_of(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _class_name(dotted: object) -> str:
    return str(dotted).rpartition(".")[-1]


def made_of_others(name: str, kinds: Iterable[str]) -> UnsupportedModelError:
    """Returns the error for a model whose modules can't be run."""
    return UnsupportedModelError(
        f"{name} is made of {', '.join(kinds)}; only models with a text transformer and a pooling can be run."
    )


def _damaged(error: MalformedJsonError) -> ModelLoadError:
    return ModelLoadError(f"{error}; fetch the model again, or correct the file.")
