"""The JSON files of a checkpoint that the libraries read, and what each must contain.

Only the keys that a library or this package relies on have a kind here. All other keys may contain anything. The ranges
are far wider than in any existing model. They stop a damaged number from using up the machine's memory or time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from bge_integrations.backend.checkpoint.json_files import (
    FLAG,
    OBJECT,
    TEXT,
    Kind,
    MalformedJsonError,
    either,
    list_of,
    number,
    object_of,
    object_with,
    one_of,
    optional,
    read_json,
    whole,
)

SETTINGS_OF_TRANSFORMER = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Settings files of sentence-transformers, which reads the first that is there and not empty."""

TRANSFORMERS = ("Transformer", "MLMTransformer", "CLIPModel")
"""Modules of sentence-transformers that transformers loads."""

ROUTERS = ("Router", "Asym")
"""Modules of sentence-transformers that contain other modules, one for each purpose of a text."""

_WIDTH = whole(1, 10**6)
_ID = whole(-1, 10**9)
_SHARE = number(0, 1)


def _is_relative(value: object) -> bool:
    if not isinstance(value, str):
        return False
    path = PureWindowsPath(value)
    return not path.anchor and ".." not in path.parts and "\0" not in value


def _is_filled_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _are_modules(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    names = [module.get("name") for module in value if isinstance(module, dict)]
    return len(set(map(str, names))) == len(names)


CONFIG = object_with(
    {
        "model_type": TEXT,
        "architectures": optional(list_of(TEXT)),
        "_name_or_path": optional(TEXT),
        "hidden_size": _WIDTH,
        "num_hidden_layers": whole(0, 2000),
        "num_attention_heads": either(whole(1, 10**5), list_of(whole(1, 10**5))),
        "intermediate_size": either(_WIDTH, list_of(_WIDTH)),
        "vocab_size": whole(1, 10**8),
        "type_vocab_size": whole(0, 10**4),
        "max_position_embeddings": optional(whole(-1, 10**8)),
        "pad_token_id": optional(_ID),
        "bos_token_id": optional(either(_ID, list_of(_ID))),
        "eos_token_id": optional(either(_ID, list_of(_ID))),
        "hidden_act": TEXT,
        "layer_norm_eps": number(0, 1),
        "rms_norm_eps": number(0, 1),
        "initializer_range": number(),
        "hidden_dropout_prob": _SHARE,
        "attention_probs_dropout_prob": _SHARE,
        "classifier_dropout": optional(_SHARE),
        "position_embedding_type": optional(TEXT),
        "is_decoder": optional(FLAG),
        "add_cross_attention": optional(FLAG),
        "id2label": optional(OBJECT),
        "label2id": optional(OBJECT),
        "num_labels": whole(0, 10**6),
        "processor_class": optional(TEXT),
        "auto_map": optional(OBJECT),
        "quantization_config": optional(OBJECT),
        "sentence_transformers": optional(object_with({"activation_fn": optional(TEXT)})),
        "sbert_ce_default_activation_function": optional(TEXT),
    }
)
"""config.json of a transformer."""

MODULES = Kind(
    "a list of modules, each with a name of its own",
    _are_modules,
    members=object_with(
        {"name": TEXT, "type": TEXT, "path": Kind("a relative path without '..'", _is_relative)},
        required=("name", "type", "path"),
    ),
)
"""modules.json."""

_POOLINGS = one_of("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_POOLING_FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
POOLING = Kind(
    "an object with embedding_dimension or word_embedding_dimension",
    lambda value: isinstance(value, dict) and ("embedding_dimension" in value or "word_embedding_dimension" in value),
    keys={
        "embedding_dimension": _WIDTH,
        "word_embedding_dimension": _WIDTH,
        "pooling_mode": either(_POOLINGS, Kind("a list of them", _is_filled_list, members=_POOLINGS)),
        "include_prompt": FLAG,
        **{f"pooling_mode_{name}": FLAG for name in _POOLING_FLAGS},
    },
)
"""config.json of a Pooling."""

WEIGHTS_INDEX = object_with({"weight_map": object_of(TEXT)}, required=("weight_map",))
"""model.safetensors.index.json and pytorch_model.bin.index.json."""

_TYPES = object_with(
    {"types": object_of(TEXT), "structure": object_of(list_of(TEXT)), "parameters": OBJECT},
    required=("types", "structure", "parameters"),
)
_OF_MODULE: Mapping[str, Kind] = {
    "Pooling": POOLING,
    "Dense": object_with(
        {"in_features": _WIDTH, "out_features": _WIDTH, "bias": FLAG, "activation_function": optional(TEXT)},
        required=("in_features", "out_features"),
    ),
    "LayerNorm": object_with({"dimension": _WIDTH}),
    "Dropout": object_with({"dropout": _SHARE}),
}
"""config.json by the class of a module."""

_LENGTH = optional(whole(1, 10**9))
_OF_TRANSFORMER = object_with(
    {
        "max_seq_length": _LENGTH,
        "query_length": _LENGTH,
        "document_length": _LENGTH,
        "do_lower_case": FLAG,
        "transformer_task": TEXT,
        "module_output_name": TEXT,
        "modality_config": object_of(OBJECT),
        "processing_kwargs": optional(object_of(OBJECT)),
        "query_expansion": optional(OBJECT),
        "unpad_inputs": optional(FLAG),
        **{f"{group}_{ending}": OBJECT for group in ("model", "config") for ending in ("args", "kwargs")},
        "tokenizer_args": OBJECT,
        "processor_kwargs": OBJECT,
    }
)
_TOKEN = either(TEXT, object_with({"content": TEXT}, required=("content",)))
_SPECIAL_TOKENS = {f"{name}_token": optional(_TOKEN) for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
_SIDE = one_of("left", "right")
TOKENIZER = object_with(
    {
        **_SPECIAL_TOKENS,
        "tokenizer_class": optional(TEXT),
        "processor_class": optional(TEXT),
        "auto_map": optional(OBJECT),
        "name_or_path": optional(TEXT),
        "model_max_length": optional(number(1)),
        "padding_side": _SIDE,
        "truncation_side": _SIDE,
        "do_lower_case": optional(FLAG),
        "split_special_tokens": optional(FLAG),
        "add_bos_token": optional(FLAG),
        "add_eos_token": optional(FLAG),
        "added_tokens_decoder": object_of(object_with({"content": TEXT}, required=("content",))),
    }
)
"""tokenizer_config.json."""
_OF_FOLDER: Mapping[str, Kind] = {
    "config.json": CONFIG,
    "generation_config.json": OBJECT,
    "adapter_config.json": object_with(
        {
            "base_model_name_or_path": optional(TEXT),
            "peft_type": TEXT,
            "task_type": optional(TEXT),
            "auto_mapping": optional(OBJECT),
            "r": whole(1, 10**6),
            "lora_alpha": number(),
        }
    ),
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": object_with(_SPECIAL_TOKENS),
    "added_tokens.json": object_of(whole(0, 10**9)),
    "processor_config.json": OBJECT,
    "preprocessor_config.json": OBJECT,
    "chat_template.json": OBJECT,
    "model.safetensors.index.json": WEIGHTS_INDEX,
    **dict.fromkeys(SETTINGS_OF_TRANSFORMER, _OF_TRANSFORMER),
}
"""Files in the folder of a transformer, by name."""

_OF_ANY_MODULE: Mapping[str, Kind] = {
    "router_config.json": _TYPES,
    "wordembedding_config.json": object_with({"tokenizer_class": TEXT}, required=("tokenizer_class",)),
    "whitespacetokenizer_config.json": OBJECT,
    "phrasetokenizer_config.json": OBJECT,
    "lstm_config.json": OBJECT,
    "cnn_config.json": OBJECT,
}

_OF_ROOT: Mapping[str, Kind] = {
    "modules.json": MODULES,
    "config_sentence_transformers.json": object_with(
        {
            "prompts": object_of(optional(TEXT)),
            "default_prompt_name": optional(TEXT),
            "similarity_fn_name": optional(TEXT),
            "truncate_dim": optional(_WIDTH),
            "model_type": TEXT,
            "__version__": object_of(TEXT),
        }
    ),
}


def read_json_files(root: Path, modules: Sequence[Mapping[str, Any]] | None) -> Iterator[tuple[Path, Any]]:
    """Reads every JSON file of a checkpoint that says how it is loaded.

    It does not read tokenizer.json, which is large and not needed if a graph is cached.

    Args:
        root: The checkpoint's folder.
        modules: The content of modules.json; `None` if there is no such file.

    Yields:
        The file and its content.

    Raises:
        MalformedJsonError: A file can't be read, or its content is not of the expected kind.
    """
    for name, kind in _OF_ROOT.items():
        yield from _read(root / name, kind)
    # The libraries also read the root as a transformer's folder if a model was saved for another purpose.
    yield from _read_module(root, "Transformer")
    for module in modules or ():
        folder = root / module["path"]
        if folder != root:
            yield from _read_module(folder, module_class(module["type"]))


def module_class(dotted: str) -> str:
    """Returns the class name of a sentence-transformers module; "" for a class of any other package."""
    return dotted.rsplit(".", 1)[-1] if dotted.startswith("sentence_transformers.") else ""


def _read_module(folder: Path, kind: str) -> Iterator[tuple[Path, Any]]:
    of_folder = _OF_FOLDER if kind in TRANSFORMERS else {"config.json": _OF_MODULE.get(kind, OBJECT)}
    if kind in ROUTERS and not (folder / "router_config.json").is_file():
        of_folder = {"config.json": _TYPES}  # the file's name before sentence-transformers 5
    for name, expected in {**of_folder, **_OF_ANY_MODULE}.items():
        for path, content in _read(folder / name, expected):
            yield path, content
            if expected is _TYPES:
                for part, dotted in content["types"].items():
                    if not _is_relative(part):
                        raise MalformedJsonError(f"{path} is damaged: types names {part!r}, not a relative path")
                    yield from _read_module(folder / part, module_class(dotted))


def _read(path: Path, kind: Kind) -> Iterator[tuple[Path, Any]]:
    content = read_json(path, kind)
    if content is not None:
        yield path, content
