"""Finds the weight files that the libraries will open for a module of a checkpoint, and checks that they may.

The rules are those of transformers' `PreTrainedModel.from_pretrained` and of sentence-transformers'
`Module.load_torch_weights`. The file's own name decides, not the target of a symlink: a name that ends in
`.safetensors` is opened as safetensors, any other file is unpickled.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from bge_integrations.backend.checkpoint.contents import ROUTERS, TRANSFORMERS, WEIGHTS_INDEX
from bge_integrations.backend.checkpoint.formats import what_lies_there
from bge_integrations.backend.checkpoint.genuine import require_genuine
from bge_integrations.backend.checkpoint.json_files import MalformedJsonError, read_json
from bge_integrations.catalogue import M3_HEAD_FILES
from bge_integrations.errors import ModelLoadError, ModelNotFoundError, UnsafeWeightsError

if TYPE_CHECKING:
    from bge_integrations.backend.checkpoint.request import LoadRequest

PICKLE_FILES = ("*.bin", "*.pt")
TRAINING_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
ADAPTER_CONFIG = "adapter_config.json"
SAFE_ADAPTER, PICKLED_ADAPTER = "adapter_model.safetensors", "adapter_model.bin"
TRANSFORMER = "Transformer"

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"
# transformers saves so after training on several machines. It reads all safetensors files in such a folder.
_OF_A_MACHINE = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_WITHOUT_WEIGHTS = (*ROUTERS, "Pooling", "Normalize", "Dropout", "WordWeights", "BoW")
_WITH_WEIGHTS = (
    *("Dense", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling", "WordEmbeddings", "StaticEmbedding"),
    "SparseAutoEncoder",
)


@dataclass(frozen=True)
class Module:
    """A module of a checkpoint, as modules.json lists it.

    Attributes:
        folder: Folder of its files.
        kind: Name of its class without the package; `TRANSFORMER` for a checkpoint without modules.json.
        is_first: Whether it is the first module, which reads the texts.
    """

    folder: Path
    kind: str
    is_first: bool

    @property
    def is_transformer(self) -> bool:
        """Whether transformers loads it. A first module of an unknown class is most likely a transformer."""
        return self.kind in TRANSFORMERS or (
            self.is_first and self.kind not in _WITHOUT_WEIGHTS and self.kind not in _WITH_WEIGHTS
        )


@dataclass(frozen=True)
class WeightRules:
    """The user's settings for weights.

    Attributes:
        name: The model's name as the user wrote it.
        allow_pickle: Whether pickled weights may be read.
        model_kwargs: The user's keywords for transformers' models.
    """

    name: str
    allow_pickle: bool
    model_kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, request: LoadRequest) -> WeightRules:
        """Returns the rules of a request."""
        model_kwargs = request.transformers_kwargs.as_dicts()["model_kwargs"]
        return cls(request.model_name, request.allow_pickle_weights, model_kwargs)

    def of_base(self, name: str) -> WeightRules:
        """Returns the rules for the base of an adapter."""
        return dataclasses.replace(self, name=name)

    @property
    def safe_first(self) -> bool:
        """Whether safetensors are searched. The user can switch this off if pickles are allowed."""
        return not self.allow_pickle or self.model_kwargs.get("use_safetensors") is not False

    @property
    def pickles_too(self) -> bool:
        """Whether pickled files are searched too."""
        return self.allow_pickle and not self.model_kwargs.get("use_safetensors")


def inside(folder: Path, name: object, named_by: Path) -> Path:
    """Returns the path of a file or folder that a checkpoint's file names.

    Symlinks may lead out of the folder: the hub's cache consists of them, and the owner of the folder has made them.

    Raises:
        UnsafeWeightsError: The name leads out of the folder.
        ModelLoadError: The name is not a text, or contains a null character.
    """
    if not isinstance(name, str) or "\0" in name:
        raise ModelLoadError(f"{named_by} names {name!r}, which is not the name of a file or folder; fetch it again.")
    as_written = PureWindowsPath(name)  # understands both separators and drives
    if as_written.anchor or ".." in as_written.parts:
        raise UnsafeWeightsError(
            f"{named_by} names {name!r}, which is outside {folder}. No file is read from there; if the model is "
            "yours, move the file into the folder."
        )
    return folder / name


def require_weights(module: Module, config: Mapping[str, Any], rules: WeightRules) -> None:
    """Refuses a module whose weights are missing, damaged or not allowed.

    Raises:
        UnsafeWeightsError: Pickled weights that the user has not allowed, or a file outside the folder.
        ModelNotFoundError: No weights, or only some of them.
        ModelLoadError: A file is damaged, or is not what its name says.
    """
    files = opened_files(module, config, rules)
    pickled = [path for path in files if path.suffix != ".safetensors"]
    if pickled and not rules.allow_pickle:
        raise UnsafeWeightsError(_pickled_message(module, pickled, rules))
    for path in files:
        require_genuine(path)
    if not files and (module.is_transformer or module.kind in _WITH_WEIGHTS):
        _refuse_without_weights(module, rules)


def require_adapter_weights(folder: Path, rules: WeightRules) -> None:
    """Checks an adapter's own weights as `require_weights` checks a module's.

    Raises:
        UnsafeWeightsError: Pickled weights that the user has not allowed.
        ModelNotFoundError: No weights.
        ModelLoadError: The file is damaged, or is not what its name says.
    """
    for name in (SAFE_ADAPTER, PICKLED_ADAPTER):
        if os.path.lexists(folder / name):
            if name == PICKLED_ADAPTER and not rules.allow_pickle:
                raise UnsafeWeightsError(
                    f"{rules.name} is an adapter whose weights are pickled ({name} in {folder}), and unpickling can "
                    "run code. If you trust its author, pass allow_pickle_weights=True."
                )
            require_genuine(folder / name)
            return
    raise ModelNotFoundError(
        f"{folder} has {ADAPTER_CONFIG}, but not the adapter's weights ({SAFE_ADAPTER}). Fetch or copy it again."
    )


def opened_files(module: Module, config: Mapping[str, Any], rules: WeightRules) -> list[Path]:
    """Returns the weight files that the libraries will open for a module; [] if there are no such files.

    A broken symlink counts as a file. An error then names it, and no other file is read in its place.

    Raises:
        UnsafeWeightsError: A file names another file outside the folder.
        ModelNotFoundError: A file that an index names is missing.
        ModelLoadError: An index can't be read.
    """
    if module.is_transformer:
        return list(_opened_by_transformers(module.folder, config, rules))
    for name in (_SAFE, _PICKLED):
        if os.path.lexists(module.folder / name):
            return [module.folder / name]
    return [] if module.kind in (*_WITH_WEIGHTS, *_WITHOUT_WEIGHTS) else _only_pickles(module.folder)


def _opened_by_transformers(folder: Path, config: Mapping[str, Any], rules: WeightRules) -> Iterator[Path]:
    gguf = rules.model_kwargs.get("gguf_file")
    if gguf:
        return
    named = list(_named_by_config(config))
    if named:
        for name in named:
            path = inside(folder, name, folder / "config.json")
            yield from _shards(path) if path.name.endswith(_INDEX) else [path]
        return
    if any(_OF_A_MACHINE.match(name) for name in _names(folder)):
        yield from (folder / name for name in _names(folder) if name.endswith(".safetensors"))
        return
    variant = rules.model_kwargs.get("variant")
    candidates = [_SAFE, _SAFE + _INDEX] if rules.safe_first else []
    candidates += [_PICKLED, _PICKLED + _INDEX] if rules.pickles_too else []
    for name in candidates:
        path = folder / _with_variant(name, variant)
        if os.path.lexists(path):
            yield from _shards(path) if name.endswith(_INDEX) else [path]
            return


def _named_by_config(config: Mapping[str, Any]) -> Iterator[object]:
    """Yields `transformers_weights` at any depth, so that the files of every part are checked."""
    for key, value in config.items():
        if key == "transformers_weights" and value is not None:
            yield value
        elif isinstance(value, dict):
            yield from _named_by_config(value)


def _with_variant(name: str, variant: object) -> str:
    if variant is None:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def _shards(index: Path) -> list[Path]:
    """Returns the files that an index names. Raises the errors of `opened_files`."""
    require_genuine(index)
    try:
        named = dict.fromkeys(read_json(index, WEIGHTS_INDEX)["weight_map"].values())
    except MalformedJsonError as error:
        raise ModelLoadError(f"{error}; fetch the model again.") from error
    if not named:
        raise ModelLoadError(f"{index} names no weights; fetch the model again.")
    shards = [inside(index.parent, name, index) for name in named]
    missing = [path.name for path in shards if not os.path.lexists(path)]
    if missing:
        them = "it" if len(missing) == 1 else "them"
        raise ModelNotFoundError(
            f"{index} names {_some(missing)}, but {index.parent} does not have {them}: the model was fetched only in "
            "part. Fetch it again, for example with `hf download`."
        )
    return sorted(shards)


def _only_pickles(folder: Path) -> list[Path]:
    """Returns all pickled files of a custom module without safetensors, since its own code decides what it reads."""
    if any(folder.glob("*.safetensors")):
        return []
    left_out = (*TRAINING_FILES, *M3_HEAD_FILES.values())
    return sorted(path for pattern in PICKLE_FILES for path in folder.glob(pattern) if path.name not in left_out)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pickled_message(module: Module, pickled: Sequence[Path], rules: WeightRules) -> str:
    files = _some(sorted(path.name for path in pickled))
    library = "AutoModel.from_pretrained" if module.is_transformer and module.is_first else "SentenceTransformer"
    has_others = os.path.lexists(module.folder / _SAFE)
    what = f"would be read from {files} in" if has_others else f"has no safetensors weights, only {files}, in"
    return (
        f"{rules.name} {what} {module.folder}, and unpickling can run code. If you trust its author, pass "
        f"allow_pickle_weights=True; or convert it once with `{library}(folder).save_pretrained(folder)`."
    )


def _refuse_without_weights(module: Module, rules: WeightRules) -> None:
    if rules.model_kwargs.get("gguf_file"):
        return
    pickled = sorted(module.folder.glob("pytorch_model*.bin"))
    if pickled and not rules.allow_pickle:
        raise UnsafeWeightsError(_pickled_message(module, pickled, rules))
    wanted = _with_variant(_SAFE, rules.model_kwargs.get("variant") if module.is_transformer else None)
    found = what_lies_there(module.folder, pickles_allowed=rules.allow_pickle)
    raise ModelNotFoundError(f"{module.folder} has no weights ({wanted}). {found}")
