"""Reads the answer of a chat model: JSON, perhaps with prose or a fence around it, and perhaps cut off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bge_integrations.texts import is_text, shortened

__all__ = ["Answer", "UnusableAnswerError", "is_refusal", "read_answer"]

_LONGEST = 200_000
"""Characters of an answer that are looked at."""
_STARTS = 500
"""Brackets at which JSON is looked for. Prose has few."""
_THOUGHTS = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_TEXT_KEYS = ("query", "question")
_BLANKS = re.compile(r"[\s,]*")
_REFUSALS = re.compile(
    r"^\W*(?:(?:i['’]?m|i am) (?:very |really )?(?:sorry|afraid)\b|sorry\b[, ]+(?:but )?i\b|i apologi[sz]e\b|"
    r"as an? (?:ai|artificial|large language)\b|"
    r"(?:i['’]?m|i am) (?:unable|not able) to (?:help|assist|generate|fulfil|comply|provide)|"
    r"i (?:can['’]?t|cannot|won['’]?t) (?:help with|assist|comply|fulfil|generate|provide)|(?:很)?抱歉|对不起|"
    r"(?:我|作为)[^。]{0,8}(?:无法|不能)(?:为您|提供|回答|生成|满足|协助|帮)|作为(?:一个|一款)?(?:AI|人工智能|语言模型))",
    re.IGNORECASE,
)


class UnusableAnswerError(Exception):
    """An answer can't be used; the text says why, for the chat model and for the user."""


@dataclass(frozen=True)
class Answer:
    """What an answer has.

    Attributes:
        items: Kinds and questions, in their order.
        faults: What is wrong with each item that is left out.
        is_cut_off: Whether the answer ended in the middle. The finished items are there.
    """

    items: tuple[tuple[str, str], ...]
    faults: tuple[str, ...] = ()
    is_cut_off: bool = False


def is_refusal(text: str) -> bool:
    """Whether a text begins as the refusals of chat models do."""
    return _REFUSALS.match(text) is not None


def read_answer(text: str, wanted: Mapping[str, int]) -> Answer:
    """Reads an answer.

    An item is an object with a kind and a query. The kind may be missing, and a text stands for an object, if only one
    kind is asked for.

    Returns:
        Its items; none for the empty list, which says that there is nothing to ask.

    Raises:
        UnusableAnswerError: There is no JSON with an item of a kind that was asked for.
    """
    text = _THOUGHTS.sub("", text[:_LONGEST]).strip()
    if not text:
        raise UnusableAnswerError("the answer is empty.")
    is_empty_list = False
    for value, is_cut_off in _values(text):
        items = _items(value)
        if items is None:
            continue
        if items:
            return _answer(items, wanted, is_cut_off=is_cut_off)
        is_empty_list = True
    if is_empty_list:
        return Answer(())
    if is_refusal(text):
        raise UnusableAnswerError(f"the model refused: {shortened(text)}.")
    if "[" in text or "{" in text:
        raise UnusableAnswerError(f"no finished item is in the JSON: {shortened(text)}.")
    raise UnusableAnswerError(f"there is no JSON: {shortened(text)}.")


def _values(text: str) -> Iterator[tuple[Any, bool]]:
    """Yields the JSON values in a text, and whether each is cut off; of a list that is cut off, the finished items.

    Objects that stand one after the other are one value, as if they were in a list.
    """
    decoder = json.JSONDecoder(strict=False)
    loose: list[Any] = []
    place = 0
    for _ in range(_STARTS):
        start = min((at for at in (text.find("[", place), text.find("{", place)) if at >= 0), default=-1)
        if start < 0:
            break
        value, place = _decoded(decoder, text, start)
        if value is None and text[start] == "[":
            finished, _ = _finished(decoder, text, start + 1)
            if finished:
                yield finished, True
        elif isinstance(value, dict) and _items(value) is None:
            loose += [value] if any(key in value for key in _TEXT_KEYS) else []
        elif value is not None:
            yield value, False
    if loose:
        yield loose, False


def _decoded(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start + 1


def _finished(decoder: json.JSONDecoder, text: str, start: int) -> tuple[list[Any], int]:
    """Returns the items of a list up to the one that is not finished."""
    found: list[Any] = []
    while True:
        blanks = _BLANKS.match(text, start)
        value, end = _decoded(decoder, text, start if blanks is None else blanks.end())
        if not isinstance(value, (dict, str)):
            return found, start
        found.append(value)
        start = end


def _items(value: Any) -> list[Any] | None:  # noqa: ANN401 - any JSON
    """Returns the list of items in a value, also one level deeper, or `None` if there is none."""
    if isinstance(value, dict) and not any(key in value for key in _TEXT_KEYS):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or not all(isinstance(item, (dict, str)) for item in value):
        return None
    return value


def _answer(items: Sequence[Any], wanted: Mapping[str, int], *, is_cut_off: bool) -> Answer:
    found: list[tuple[str, str]] = []
    faults: list[str] = []
    only = next(iter(wanted)) if len(wanted) == 1 else None
    for item in items:
        kind: object = only
        text: object = item
        if isinstance(item, dict):
            text = next((item[key] for key in _TEXT_KEYS if key in item), None)
            kind = item.get("kind", only)
        if not is_text(text):
            faults.append(f'an item has no text under "query": {shortened(item)}.')
        elif not is_text(kind) or kind not in wanted:
            faults.append(f'an item has no "kind" out of {", ".join(wanted)}: {shortened(item)}.')
        else:
            found.append((kind, " ".join(text.split())))
    if not found:
        raise UnusableAnswerError(faults[0])
    return Answer(tuple(found), tuple(faults), is_cut_off)
