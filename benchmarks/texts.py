"""Texts of several lengths, cut out of the docstrings of Python's standard library."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.docstrings.corpus import collect
from benchmarks.stats import percentile, token_weighted_mean

_LONGEST, _SHORTEST = 512, 8

# A log-normal distribution with mean 80 and 95th percentile 230, as paragraphs of English prose have.
_MIXED_LOG_MEAN, _MIXED_LOG_DEVIATION = 4.0, 0.874


@dataclass(frozen=True)
class TextMix:
    """Distinct texts of one distribution of lengths.

    Attributes:
        name: "queries", "short", "mixed" or "long".
        texts: In random order.
        lengths: Tokens of each, special tokens included.
    """

    name: str
    texts: list[str]
    lengths: list[int]

    def statistics(self) -> dict[str, float]:
        """Returns what is to be known of the lengths, in tokens."""
        return {
            "texts": len(self.texts),
            "tokens": sum(self.lengths),
            "mean": sum(self.lengths) / len(self.lengths),
            "p5": percentile(self.lengths, 5),
            "median": percentile(self.lengths, 50),
            "p95": percentile(self.lengths, 95),
            "longest": max(self.lengths),
            "token_weighted_mean": token_weighted_mean(self.lengths),
        }

    def take(self, indices: list[int]) -> TextMix:
        """Returns some of them."""
        return TextMix(self.name, [self.texts[i] for i in indices], [self.lengths[i] for i in indices])


def _uniform(least: int, most: int) -> Callable[[random.Random], int]:
    return lambda source: source.randint(least, most)


def _mixed(source: random.Random) -> int:
    length = math.exp(source.gauss(_MIXED_LOG_MEAN, _MIXED_LOG_DEVIATION))
    return round(min(max(length, _SHORTEST), _LONGEST))


MIXES: dict[str, Callable[[random.Random], int]] = {
    "queries": _uniform(10, 25),
    "short": _uniform(30, 60),
    "mixed": _mixed,
    "long": _uniform(490, _LONGEST),
}
"""How each draws the tokens of a text."""


def make_mix(name: str, count: int, model: Path, seed: int = 0) -> TextMix:
    """Makes a mix; the same in every run on the same Python.

    Args:
        name: One of `MIXES`.
        count: Texts wanted; fewer come back where the standard library does not have that many words.
        model: The folder whose tokenizer counts.
        seed: Of the order of docstrings and of the lengths.
    """
    tokenizer = _tokenizer(model)
    source = random.Random(f"{name} {seed}")
    docstrings = [entry.text for entry in collect()]
    source.shuffle(docstrings)
    draw, longest = MIXES[name], _longest_text(model)
    texts = dict.fromkeys(_cut(iter(docstrings), lambda: min(draw(source), longest), count, tokenizer))
    counted = list(texts)
    return TextMix(name, counted, [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(counted)])


def enlarged(mix: TextMix, count: int, model: Path) -> TextMix:
    """Returns a mix of a number of texts, for a device that computes all docstrings in an instant.

    Texts come again, each with its number in front: equal texts are computed once by some.

    Args:
        mix: The mix.
        count: Number of texts.
        model: The folder whose tokenizer counts.
    """
    texts = [f"{number} {mix.texts[number % len(mix.texts)]}" for number in range(count)]
    longest = _longest_text(model)
    lengths = [min(len(encoding.ids), longest) for encoding in _tokenizer(model).encode_batch_fast(texts)]
    return TextMix(mix.name, texts, lengths)


def _cut(docstrings: Iterator[str], draw: Callable[[], int], count: int, tokenizer: Any) -> Iterator[str]:  # noqa: ANN401
    """Joins docstrings until there are enough tokens, then cuts after the last whole word that fits."""
    for _ in range(count):
        wanted = draw()
        text = ""
        while True:
            following = next(docstrings, None)
            if following is None:
                return
            text = f"{text} {following}".strip()
            words = tokenizer.encode(text, add_special_tokens=False)
            room = wanted - tokenizer.num_special_tokens_to_add(False)
            if len(words.ids) >= room:
                break
        if len(words.ids) > room:
            # In front of the word that the first token beyond the limit belongs to.
            cut = words.word_to_chars(words.token_to_word(room))[0]
            text = text[:cut].rstrip()
        yield text


def _longest_text(model: Path) -> int:
    """Returns how many tokens a model reads, so that none is counted that nobody computes."""
    config = model / "sentence_bert_config.json"
    content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return min(_LONGEST, content.get("max_seq_length") or _LONGEST)


def _tokenizer(model: Path) -> Any:  # noqa: ANN401 - the library has no types
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
