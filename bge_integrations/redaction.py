"""Finds secrets in values and hides them: in error messages, in pydantic's errors and in reprs."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "**********"
"""The text shown in place of a secret. pydantic's `SecretStr` shows the same."""

# Hub tokens of users and of organisations, at any place in a text.
_HUB_TOKEN = re.compile(r"\b(?:hf|api_org)_(?:(?:oauth|jwt)_[\w.-]{8,}|[A-Za-z0-9]{16,})")
# A password may hold a "@" that should have been written as "%40".
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_TOKENS = ("token", "tokens")
_SECRETS = ("secret", "secrets", "password", "passphrase", "credential", "credentials", "authorization", "bearer")
# Too short to search for similar spellings: "author" is similar to "auth".
_SHORT_SECRETS = ("auth", "jwt", "passwd", "pwd", "apikey", "apikeys")
_CLOSE_ENOUGH = 0.8
_TOKEN_OF_TEXTS = re.compile(r"<.*>|\[.*\]")  # such as "<mask>" or "[SEP]"
# Words in names of text tokens and token counts: pad_token, max_new_tokens, batch_tokens, token_type_ids.
_BESIDE_TOKENS_OF_TEXTS = (
    *("bos", "cls", "eos", "extra", "image", "mask", "pad", "sep", "special", "unk"),
    *("add", "batch", "count", "id", "ids", "length", "max", "min", "new", "num", "split", "type"),
)
# The user chooses the keys of these dictionaries: a prompt's name can be "key".
_NAMED_BY_THE_USER = ("prompts",)


def is_secret_name(name: object) -> bool:
    """Returns whether a keyword is named like a secret: `hf_token`, `api_key`. Similar spellings count too."""
    words = [word.lower() for word in _WORD.findall(str(name))]
    if not words:
        return False
    if words[-1].endswith(("key", "keys")) or any(word in _SHORT_SECRETS or _is_near(word, _SECRETS) for word in words):
        return True
    return any(_is_near(word, _TOKENS) for word in words) and not any(word in _BESIDE_TOKENS_OF_TEXTS for word in words)


def _is_near(word: str, known: tuple[str, ...]) -> bool:
    return word.endswith(known) or bool(difflib.get_close_matches(word, known, 1, _CLOSE_ENOUGH))


def without_credentials(text: str) -> str:
    """Returns a text without the users and the passwords in its addresses."""
    return _CREDENTIALS.sub("", text)


def is_hub_token(text: str) -> bool:
    """Returns whether the whole text is a hub token."""
    return _HUB_TOKEN.fullmatch(text) is not None


def holds_secret(value: object, name: object = "") -> bool:
    """Returns whether a value contains a secret: a hub token in a text, or a value under the name of a secret."""
    if value is None or isinstance(value, (bool, int, float)):
        return False
    if _is_secret(value, name):
        return True
    if isinstance(value, Mapping):
        return any(holds_secret(one, key) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return any(holds_secret(one) for one in value)
    return _HUB_TOKEN.search(repr(value)) is not None


def without_secrets(value: object, name: object = "") -> object:
    """Returns a value with asterisks in place of every secret.

    An object whose repr contains a hub token becomes a text.

    Args:
        value: The value. Mappings, lists, tuples and pairs (key, value) are searched at any depth.
        name: The keyword of the value.
    """
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(value, name):
        return HIDDEN
    if isinstance(value, str):
        return without_hub_tokens(value)
    if isinstance(value, Mapping):
        chosen = name in _NAMED_BY_THE_USER
        return {without_secrets(key): without_secrets(one, "" if chosen else key) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        key = value[0] if len(value) == 2 and is_secret_name(value[0]) else ""
        parts = [without_secrets(one, key if place else "") for place, one in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    text = repr(value)
    safe = without_hub_tokens(text)
    return value if safe == text else safe


def without_secret_keys(values: Mapping[str, object]) -> dict[str, object]:
    """Returns a copy that can be saved: it lacks the keys, at any depth, whose values contain a secret."""
    return {
        key: without_secret_keys(value) if isinstance(value, Mapping) and key not in _NAMED_BY_THE_USER else value
        for key, value in values.items()
        if isinstance(value, Mapping) or not holds_secret(value, key)
    }


def shown(value: object, name: object = "") -> str:
    """Returns the repr of a value, without secrets, for a message. See `without_secrets`."""
    return without_hub_tokens(repr(without_secrets(value, name)))


def shown_fields(instance: Any) -> str:  # noqa: ANN401 - any dataclass
    """Returns the repr of a dataclass in the format of `dataclasses`, without secrets."""
    fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance) if field.repr}
    return f"{type(instance).__name__}({', '.join(f'{name}={shown(value, name)}' for name, value in fields.items())})"


def without_hub_tokens(text: str) -> str:
    """Returns a text with asterisks in place of everything that looks like a hub token."""
    return _HUB_TOKEN.sub(HIDDEN, text)


def _is_secret(value: object, name: object) -> bool:
    return is_secret_name(name) and not (isinstance(value, str) and _TOKEN_OF_TEXTS.fullmatch(value))
