"""Reads a checkpoint's tokenizer without transformers. It equals the tokenizer that transformers makes.

transformers 5 uses all of tokenizer.json only for the generic class. `BertTokenizer` and `XLMRobertaTokenizer` use its
vocabulary and its added tokens, and build the rest from tokenizer_config.json (`do_lower_case` is true by default).
This module does the same. It refuses files for which transformers may do anything else, and transformers' own loader
is used then.

Sources: `TokenizersBackend.convert_to_native_format`, `PreTrainedTokenizerBase._from_pretrained` and
`AutoTokenizer.from_pretrained` in transformers 5.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from bge_integrations.backend.checkpoint.plainness import NotPlainError, read_object
from bge_integrations.backend.text.tokenizer import Side, TextTokenizer

_FILE, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# Each of these changes how texts are read, or belongs to a processor of more than texts.
_FURTHER_FILES = (
    *("added_tokens.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates"),
)
_SPECIAL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Keys that are read below, and keys that change no ids. Files with other keys are refused.
_KNOWN_KEYS = frozenset(
    (
        *(f"{name}_token" for name in _SPECIAL_NAMES),
        *("tokenizer_class", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
        *("model_max_length", "truncation_side", "model_input_names", "split_special_tokens", "add_prefix_space"),
        *("do_lower_case", "tokenize_chinese_chars", "strip_accents"),
        *("do_basic_tokenize", "never_split", "clean_up_tokenization_spaces", "padding_side", "pad_token_type_id"),
        *(
            "pad_to_multiple_of",
            "max_length",
            "stride",
            "truncation_strategy",
            "sp_model_kwargs",
            "backend",
            "is_local",
        ),
        *("name_or_path", "special_tokens_map_file", "add_bos_token", "add_eos_token", "local_files_only"),
    )
)
_GENERIC = ("TokenizersBackend", "PreTrainedTokenizer")
_CLASS_OF_ARCHITECTURE = {"bert": "BertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
_FLAGS_OF_TOKEN = ("single_word", "lstrip", "rstrip", "normalized", "special")
_UNBOUNDED = 10**9
"""Limits from here on mean no limit: a tokenizer without a limit is saved with 1e30."""


@dataclass(frozen=True)
class _Class:
    """A tokenizer class of transformers.

    Attributes:
        model: Kind of model in tokenizer.json.
        tokens: Default special tokens by name.
        input_names: Names of its outputs.
    """

    model: str
    tokens: Mapping[str, str]
    input_names: tuple[str, ...]


_CLASSES = {
    "BertTokenizer": _Class(
        "WordPiece",
        {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
        ("input_ids", "token_type_ids", "attention_mask"),
    ),
    "XLMRobertaTokenizer": _Class(
        "Unigram",
        {
            "bos": "<s>",
            "eos": "</s>",
            "sep": "</s>",
            "cls": "<s>",
            "unk": "<unk>",
            "pad": "<pad>",
            "mask": "<mask>",
        },
        ("input_ids", "attention_mask"),
    ),
}
_ANY_INPUT_NAMES = ("input_ids", "token_type_ids", "attention_mask")


@dataclass(frozen=True)
class SavedTokenizer:
    """A tokenizer, with settings from its files that are not part of it.

    Attributes:
        tokenizer: The tokenizer itself.
        model_max_length: Tokens per text; `None` if the files don't say.
        gives_types: Whether it gives token types, so that a pair's second text can have another type.
    """

    tokenizer: TextTokenizer
    model_max_length: int | None
    gives_types: bool


def read_tokenizer(folder: Path, architecture: str, *, lowercases: bool) -> SavedTokenizer:
    """Makes a checkpoint's tokenizer.

    Args:
        folder: Folder of the tokenizer's files.
        architecture: The `model_type` in config.json.
        lowercases: Whether sentence-transformers lowercases every text first (`do_lower_case` in its own file).

    Raises:
        NotPlainError: transformers may make another tokenizer from these files.
    """
    for name in _FURTHER_FILES:
        if (folder / name).exists():
            raise NotPlainError(f"it has a {name}")
    saved, config = _read(folder / _FILE), _read(folder / _CONFIG)
    unknown = sorted(set(config) - _KNOWN_KEYS)
    if unknown:
        raise NotPlainError(f"its {_CONFIG} has {unknown[0]}")
    named_class = str(config.get("tokenizer_class") or _CLASS_OF_ARCHITECTURE.get(architecture)).removesuffix("Fast")
    kind = _CLASSES.get(named_class)
    if kind is None and named_class not in _GENERIC:
        raise NotPlainError(f"its tokenizer is of the class {named_class}")
    added = _added_tokens(saved, config)
    special = _special_tokens(folder, saved, config, kind)
    rust = _load(folder / _FILE)
    if kind is None:
        if rust.post_processor is None:
            raise NotPlainError(f"its {_FILE} has no post_processor")
    else:
        _require_plain_model(saved, kind, special)
        _rebuild(rust, saved, config, named_class, special)
    for name, token in special.items():
        if token not in added or not added[token]["special"]:
            raise NotPlainError(f"its {name}_token {token!r} is not a special token in {_FILE}")
    if lowercases:
        _lower_first(rust)
    rust.encode_special_tokens = config.get("split_special_tokens") is True
    pad = rust.token_to_id(special["pad"]) if "pad" in special else None
    return SavedTokenizer(
        TextTokenizer(rust, pad_id=pad or 0, truncation_side=_truncation_side(saved, config)),
        _limit(config),
        "token_type_ids" in (config.get("model_input_names") or (kind.input_names if kind else _ANY_INPUT_NAMES)),
    )


def _read(file: Path) -> dict[str, Any]:
    content = read_object(file)
    if content is None:
        raise NotPlainError(f"it has no {file.name}")
    return content


def _load(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise NotPlainError(f"its {file.name} can't be read: {error}") from error


def _added_tokens(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the added tokens, which are searched in a text before it is split, by their text.

    Raises:
        NotPlainError: tokenizer_config.json and tokenizer.json name different added tokens, or the ids are not those
            that the tokens get when they are added in their order.
    """
    added = {token["content"]: token for token in saved.get("added_tokens") or ()}
    recorded = config.get("added_tokens_decoder")
    if recorded is not None:
        flags = {
            int(id_): (token["content"], *(bool(token.get(flag)) for flag in _FLAGS_OF_TOKEN))
            for id_, token in recorded.items()
        }
        found = {token["id"]: (text, *(token[flag] for flag in _FLAGS_OF_TOKEN)) for text, token in added.items()}
        if flags != found:
            raise NotPlainError(f"{_FILE} and {_CONFIG} name different added tokens")
    vocabulary = _vocabulary(saved)
    further = sorted(token["id"] for text, token in added.items() if text not in vocabulary)
    moved = any(vocabulary.get(text, token["id"]) != token["id"] for text, token in added.items())
    if moved or further != [*range(len(vocabulary), len(vocabulary) + len(further))]:
        raise NotPlainError(f"the added tokens in {_FILE} have other ids than by their order")
    for name in ("extra_special_tokens", "additional_special_tokens"):
        if config.get(name):
            raise NotPlainError(f"its {_CONFIG} has {name}")
    return added


def _vocabulary(saved: Mapping[str, Any]) -> Mapping[str, int]:
    words = (saved.get("model") or {}).get("vocab")
    if isinstance(words, dict):
        return words
    if isinstance(words, list):
        return {piece[0]: id_ for id_, piece in enumerate(words)}
    raise NotPlainError(f"its {_FILE} has no vocabulary")


def _special_tokens(
    folder: Path, saved: Mapping[str, Any], config: Mapping[str, Any], kind: _Class | None
) -> dict[str, str]:
    """Returns the special tokens by name, such as "cls"."""
    named: dict[str, Any] = {name: config.get(f"{name}_token") for name in _SPECIAL_NAMES}
    if "added_tokens_decoder" not in config and (folder / _SPECIAL).exists():
        former = _read(folder / _SPECIAL)
        for key, token in former.items():
            name = key.removesuffix("_token")
            if name in _SPECIAL_NAMES:
                named[name] = token
            elif token:
                raise NotPlainError(f"its {_SPECIAL} has {key}")
    if named["pad"] is None and kind is None and saved.get("padding"):
        named["pad"] = saved["padding"].get("pad_token")
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items() if token}
    if any(f"{name}_token" in config and config[f"{name}_token"] is None for name in (kind.tokens if kind else ())):
        raise NotPlainError(f"its {_CONFIG} switches a special token off")
    return {**(kind.tokens if kind else {}), **texts}


def _require_plain_model(saved: Mapping[str, Any], kind: _Class, special: Mapping[str, str]) -> None:
    model = saved["model"]
    if model.get("type") != kind.model:
        raise NotPlainError(f"the model in its {_FILE} is {model.get('type')!r}, not {kind.model}")
    plain = (
        {"unk_token": special["unk"], "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        if kind.model == "WordPiece"
        else {"unk_id": 3, "byte_fallback": False}
    )
    for key, value in plain.items():
        if model.get(key, value) != value:
            raise NotPlainError(f"the model in its {_FILE} has {key} = {model[key]!r}")


def _rebuild(
    rust: Tokenizer,
    saved: Mapping[str, Any],
    config: Mapping[str, Any],
    named_class: str,
    special: Mapping[str, str],
) -> None:
    """Builds the same steps around the vocabulary as transformers."""
    if named_class == "BertTokenizer":
        strips = None if config.get("strip_accents") is None else _flag(config, "strip_accents", default=False)
        rust.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=_flag(config, "tokenize_chinese_chars", default=True),
            strip_accents=strips,
            lowercase=_flag(config, "do_lower_case", default=True),
        )
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.post_processor = _around(
            rust,
            [special["cls"], "$A", special["sep"]],
            [f"{special['cls']}:0", "$A:0", f"{special['sep']}:0", "$B:1", f"{special['sep']}:1"],
            (special["cls"], special["sep"]),
        )
        return
    bos, eos = special["bos"], special["eos"]
    characters = _precompiled_characters(saved.get("normalizer"))
    rust.normalizer = normalizers.Precompiled(characters) if characters is not None else None
    scheme = "always" if _flag(config, "add_prefix_space", default=True) else "never"
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    rust.post_processor = _around(rust, [bos, "$A", eos], [bos, "$A", eos, eos, "$B", eos], (bos, eos))


def _around(
    rust: Tokenizer, single: list[str], pair: list[str], tokens: tuple[str, ...]
) -> processors.TemplateProcessing:
    ids = {token: rust.token_to_id(token) for token in tokens}
    for token, id_ in ids.items():
        if id_ is None:
            raise NotPlainError(f"its {_FILE} does not know the token {token!r}")
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise NotPlainError(f"its {_CONFIG} has {key} = {value!r}")
    return value


def _precompiled_characters(normalizer: Mapping[str, Any] | None) -> bytes | None:
    """Returns SentencePiece's table of characters, the only part of a saved normaliser that transformers uses."""
    parts = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    for part in parts:
        if part.get("type") == "Precompiled" and "precompiled_charsmap" in part:
            return base64.b64decode(part["precompiled_charsmap"])
    return None


def _lower_first(rust: Tokenizer) -> None:
    """Adds lowercasing as the first step, unless there is such a step already, as sentence-transformers does."""
    now: Any = rust.normalizer
    is_sequence = isinstance(now, normalizers.Sequence)
    steps: list[Any] = list(now) if is_sequence else [now] if now is not None else []
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        rust.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _limit(config: Mapping[str, Any]) -> int | None:
    limit = config.get("model_max_length")
    if limit is None or limit >= _UNBOUNDED:
        return None
    if not isinstance(limit, int):
        raise NotPlainError(f"its {_CONFIG} has model_max_length = {limit!r}")
    return limit


def _truncation_side(saved: Mapping[str, Any], config: Mapping[str, Any]) -> Side:
    recorded = (saved.get("truncation") or {}).get("direction")
    side = config.get("truncation_side") or str(recorded or "right").lower()
    return "left" if side == "left" else "right"
