"""Begin and end tokens of models with last-token pooling.

transformers 4 wrote `add_bos_token` and `add_eos_token` into tokenizer_config.json, and built the tokenizer from them.
transformers 5 uses tokenizer.json and ignores both flags. If tokenizer.json adds no end token, the pooling then takes
the state of the last word instead of the end token's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, processors

from bge_integrations.catalogue import ModelSpec

_FLAGS = ("add_bos_token", "add_eos_token")


def complete_text_ends(
    tokenizer: Any,  # noqa: ANN401 - transformers' tokenizers share no public base
    *,
    saved: Mapping[str, Any],
    given: Mapping[str, Any],
    spec: ModelSpec | None,
) -> None:
    """Makes a tokenizer add the begin and end tokens that its checkpoint asks for, if one of them is missing.

    Args:
        tokenizer: Tokenizer of transformers, changed in place.
        saved: Content of tokenizer_config.json.
        given: The user's keywords for the tokenizer's `from_pretrained`. If they have one of the flags, which
            transformers then follows, nothing is changed.
        spec: The catalogue's row of a model with this name, used if the checkpoint doesn't say; `None` otherwise.
    """
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(rust, Tokenizer) or any(flag in given for flag in _FLAGS):
        return
    sample = rust.encode("a")
    around = [id_ for id_, special in zip(sample.ids, sample.special_tokens_mask, strict=True) if special]
    added = {
        "add_bos_token": bool(around) and around[0] == tokenizer.bos_token_id and sample.special_tokens_mask[0] == 1,
        "add_eos_token": bool(around) and around[-1] == tokenizer.eos_token_id and sample.special_tokens_mask[-1] == 1,
    }
    said = {flag: saved[flag] for flag in _FLAGS if isinstance(saved.get(flag), bool)}
    known = {"add_bos_token": spec.starts_with_bos, "add_eos_token": spec.ends_with_eos} if spec else {}
    lacks_end = "add_eos_token" not in said and known.get("add_eos_token") is True and not added["add_eos_token"]
    if not lacks_end and not any(said.get(flag) is True and not added[flag] for flag in _FLAGS):
        return
    wanted = {**added, **{flag: value for flag, value in known.items() if value is not None}, **said}
    rust.post_processor = _around_texts(
        *(_token(tokenizer, name) if wanted[f"add_{name}_token"] else None for name in ("bos", "eos"))
    )


def _token(tokenizer: Any, name: str) -> tuple[str, int] | None:  # noqa: ANN401 - see `complete_text_ends`
    """Returns a token and its id; `None` if the tokenizer has no such token, which training then can't have added."""
    token, id_ = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
    return None if token is None or id_ is None else (str(token), int(id_))


def _around_texts(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.TemplateProcessing:
    def template(name: str, type_: int) -> str:
        parts = (bos and f"{bos[0]}:{type_}", f"${name}:{type_}", eos and f"{eos[0]}:{type_}")
        return " ".join(part for part in parts if part)

    return processors.TemplateProcessing(
        single=template("A", 0),
        pair=f"{template('A', 0)} {template('B', 1)}",
        special_tokens=[token for token in (bos, eos) if token],
    )
