"""Settings of sentence-transformers and transformers beside the tokenizer, and a check that they are all known.

Some settings are not in tokenizer.json, such as `split_special_tokens`. Others are applied at every call, such as a
checkpoint's `processing_kwargs`. The known settings are read. To find unknown ones, up to three texts are tokenized by
our copy and by the library, and the ids are compared: other ids would give other vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer

from bge_integrations.backend.text.tokenizer import TextTokenizer, TokenizedTexts
from bge_integrations.errors import UnsupportedModelError

_CAPITALS = "  The QUICK Brown Fox, naïve CAFÉ and ÜBER-straße; İstanbul ﬁne 東京タワー １２３ don't\tA.B. \n\n End "
_WORDS = "plants make sugar from light and water, "
_SPECIAL_NAMES = ("bos", "eos", "cls", "sep", "pad", "unk", "mask")
# A longer text takes seconds to tokenize and shows no more.
_LONGEST = 32768
_TASKS = (None, "query", "document")
"""Tasks of sentence-transformers' `encode`, `encode_query` and `encode_document`."""


@dataclass(frozen=True)
class Read:
    """A text, or a pair of them, as the library reads it.

    Attributes:
        ids: Token ids without padding, shape [tokens].
        types: Type of each token; `None` if the model uses no types.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64] | None


@dataclass(frozen=True)
class CallSettings:
    """A checkpoint's settings for every call of its tokenizer (`processing_kwargs`).

    Attributes:
        max_length: Tokens per text; `None` if texts are not cut.
        adds_special_tokens: Whether special tokens are added around a text.
        splits_special_tokens: Whether special tokens in a text are read as plain text; `None` if it is not set.
    """

    max_length: int | None
    adds_special_tokens: bool
    splits_special_tokens: bool | None

    @classmethod
    def of(cls, module: Transformer) -> CallSettings:
        """Reads the settings of a module. Values of a wrong type are ignored; the comparison finds their effect."""
        given: dict[str, Any] = {}
        for group in ("text", "common"):  # the later group overrides the earlier one
            values = module.processing_kwargs.get(group)
            given |= values if isinstance(values, Mapping) else {}
        max_length = given.get("max_length", module.max_seq_length)
        cuts = given.get("truncation", True) not in (False, "do_not_truncate")
        splits = given.get("split_special_tokens")
        return cls(
            int(max_length) if cuts and isinstance(max_length, int) else None,
            given.get("add_special_tokens", True) is not False,
            splits if isinstance(splits, bool) else None,
        )

    def tokenizer(self, module: Transformer) -> TextTokenizer:
        """Returns a private copy of a module's tokenizer with these settings."""
        return TextTokenizer.copy_of(
            module.tokenizer,
            splits_special_tokens=self.splits_special_tokens,
            adds_special_tokens=self.adds_special_tokens,
        )


def require_same_texts(name: str, module: Transformer, tokenizer: TextTokenizer, limit: int) -> None:
    """Compares how texts are read.

    Raises:
        UnsupportedModelError: A text is read differently.
    """
    by_task = any((module.query_length, module.document_length, module.query_expansion))
    for task in _TASKS:
        _compare(
            name,
            module,
            limit,
            _texts(module.tokenizer, limit, long=task is None or by_task),
            ours=lambda text: tokenizer.tokenize([text], limit),
            theirs=partial(_read, module, task),
            method={None: "encode", "query": "encode_query", "document": "encode_document"}[task],
            second_type=0,
        )


def require_same_pairs(
    name: str,
    module: Transformer,
    tokenize: Callable[[list[tuple[str, str]], int], TokenizedTexts],
    limit: int,
    second_type: int,
) -> None:
    """Compares how pairs of texts are read, each behind a short query.

    Raises:
        UnsupportedModelError: A pair is read differently.
    """
    _compare(
        name,
        module,
        limit,
        _texts(module.tokenizer, limit),
        ours=lambda text: tokenize([("a", text)], limit),
        theirs=lambda text: _read(module, None, ("a", text)),
        method="predict",
        second_type=second_type,
    )


def require_same_contents(name: str, original: Any, tokenizer: TextTokenizer) -> None:  # noqa: ANN401
    """Compares how a decoder's tokenizer reads texts without adding special tokens.

    Raises:
        UnsupportedModelError: A text is read differently.
    """
    for what, text in _texts(original, 0, long=False).items():
        theirs = original(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.content(text) != list(theirs):
            raise UnsupportedModelError(_difference(name, what, "AutoTokenizer", tokenizer.content(text), theirs, {}))


def _compare(
    name: str,
    module: Transformer,
    limit: int,
    texts: Mapping[str, str],
    *,
    ours: Callable[[str], TokenizedTexts],
    theirs: Callable[[str], Read],
    method: str,
    second_type: int,
) -> None:
    settings = CallSettings.of(module)
    # The table of positions or the catalogue may allow fewer tokens than the library tries to read.
    is_their_limit = settings.max_length == limit
    for what, text in texts.items():
        got = ours(text)
        try:
            expected = theirs(text)
        except Exception as error:  # libraries raise many classes of errors for settings that they can't follow
            raise UnsupportedModelError(
                f"{name} can't be used: sentence-transformers' `{method}` fails on {what}: {error!r}."
            ) from error
        if not is_their_limit and len(got.ids) == limit <= len(expected.ids):
            continue
        first = len(got.ids) if got.first_lengths is None else int(got.first_lengths[0])
        types = np.where(np.arange(len(got.ids)) < first, 0, second_type)
        if not np.array_equal(got.ids, expected.ids):
            raise UnsupportedModelError(
                _difference(name, what, method, got.ids.tolist(), expected.ids.tolist(), _named_settings(module))
            )
        if expected.types is not None and not np.array_equal(types, expected.types):
            raise UnsupportedModelError(
                f"{name} can't be used: its tokenizer gives {what} the token types {_some(expected.types.tolist())} "
                "(token_type_ids). Only 0, and 1 for the second text of a pair, are supported here; use the library "
                "itself."
            )


def _texts(tokenizer: Any, limit: int, *, long: bool = True) -> dict[str, str]:  # noqa: ANN401 - of transformers
    """Returns texts that show differences, by their names in messages."""
    named = [getattr(tokenizer, f"{name}_token", None) for name in _SPECIAL_NAMES]
    special = " ".join(dict.fromkeys(str(token) for token in named if token))
    texts = {
        "a text with special tokens": f"before {special} after{special.replace(' ', '')}",
        "a text with capitals, accents and white space": _CAPITALS,
    }
    if long:
        words = limit + 8 if limit <= _LONGEST else 100
        texts["a long text"] = _WORDS * -(-words // _WORDS.count(" "))
    return texts


def _read(module: Transformer, task: str | None, text: str | tuple[str, str]) -> Read:
    # Two texts, since a list of one may be taken for a text; equal texts, since not all tokenizers can pad.
    unpadded: Any = {"text": {"padding": False}, "common": {"padding": False}}
    features = module.preprocess([text, text], processing_kwargs=unpadded, **({"task": task} if task else {}))
    ids = np.asarray(features["input_ids"])
    if "attention_mask" not in features:  # both texts are in one row, for kernels without padding
        ids = ids.reshape(2, -1)
    if ids.shape[0] != 2:
        raise ValueError(f"two texts are read as {ids.shape[0]}")
    mask = np.asarray(features["attention_mask"])[0] == 1 if "attention_mask" in features else slice(None)
    reads_types = "token_type_ids" in module._declared_forward_params and "token_type_ids" in features
    return Read(ids[0][mask], np.asarray(features["token_type_ids"])[0][mask] if reads_types else None)


def _named_settings(module: Transformer) -> dict[str, Any]:
    """Returns the settings that the module applies at every call."""
    names = ("processing_kwargs", "query_length", "document_length", "query_expansion")
    found = {name: getattr(module, name, None) for name in names}
    if "message" in module.modality_config:
        found["modality"] = "message, by its chat_template; for a bare checkpoint, `pooling` switches it off"
    return {name: value for name, value in found.items() if value}


def _difference(
    name: str, what: str, method: str, ours: list[int], theirs: list[int], settings: Mapping[str, Any]
) -> str:
    place = next((at for at, (left, right) in enumerate(zip(ours, theirs, strict=False)) if left != right), None)
    at = min(len(ours), len(theirs)) if place is None else place
    where = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or (
        "its tokenizer's own code, split_special_tokens, processing_kwargs, query_length, document_length and "
        "chat_template are such settings"
    )
    return (
        f"{name} can't be used: {what} is read differently by `{method}` of the library that it was saved with: "
        f"{len(theirs)} tokens there and {len(ours)} here; from token {at} on the ids are {_some(theirs[at:])} there "
        f"and {_some(ours[at:])} here. The cause is a setting beside tokenizer.json ({where}); remove it from "
        "sentence_bert_config.json or tokenizer_config.json, or use the library itself."
    )


def _some(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:6]))
    return f"[{shown}{', …' if len(ids) > 6 else ''}]"
