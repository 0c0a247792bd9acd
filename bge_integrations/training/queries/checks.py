"""Checks of single questions by their text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bge_integrations.texts import shortened
from bge_integrations.training.mining.exclusions import normalised, overlap
from bge_integrations.training.queries.answers import is_refusal
from bge_integrations.training.queries.kinds import QuestionKind
from bge_integrations.training.queries.settings import Language
from bge_integrations.training.queries.wording import copied, main_script, pieces, script_share, size
from bge_integrations.training.rows.data import text_fault

__all__ = ["REASONS", "Reason", "Rules"]

Reason = Literal[
    "answer", "form", "more", "length", "language", "refusal", "mention", "copy", "example", "duplicate", "test", "rank"
]

REASONS: dict[Reason, str] = {
    "answer": "no usable answer",
    "form": "not in the form that was asked for",
    "more": "more than were asked for",
    "length": "too short or too long",
    "language": "in another language",
    "refusal": "a refusal",
    "mention": "mentions the passage",
    "copy": "copies the passage's words",
    "example": "repeats an example",
    "duplicate": "nearly the same as another question",
    "test": "too like a test question",
    "rank": "its passage is not found",
}
"""Why a question is refused, in words."""

_COPIED_SHARE = 0.75
"""Share of a question in runs of the passage's words from which it is a copy."""
_SCRIPT_SHARE = 0.3
"""Least share of words in the right script: names and terms of a Chinese question are often Latin."""
_LIKE_AN_EXAMPLE = 0.7
"""Jaccard similarity of shingles from which a question repeats an example."""
_SCRIPTS: dict[Language, str] = {"en": "LATIN", "zh": "CJK"}

_THIS = r"(?:the|this|that|these|those|above|given|provided|following)"
_MENTIONS = re.compile(
    rf"\b{_THIS} (?:(?:above|given|provided|following) )?(?:passages?|excerpts?|snippets?)\b"
    rf"|\bthe (?:above|given|provided) (?:text|document|article|section|paragraph|context|information)\b"
    rf"|\b(?:according to|based on|as (?:stated|described|mentioned|explained) in|mentioned in|described in|stated in|"
    rf"discussed in) {_THIS} (?:text|document|article|section|paragraph|context|author)s?\b"
    rf"|\b(?:does|do|did) {_THIS} (?:text|document|article|section|paragraph|author)s? (?:say|mention|describe|explain|"
    rf"state|discuss|suggest)\b"
    r"|文中|本文|上文|原文|(?:本|该|此|这|上述|以上|给定)(?:一)?(?:段落|段文字|段话|段内容|篇文章|篇文档|文档|文章|段)"
    r"|(?:根据|依据|按照)(?:上述|以上|提供的|给出的|给定的)(?:内容|信息|材料|文本)|作者(?:认为|提到|指出)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rules:
    """What a question's text must be like."""

    language: Language
    copied_words: int
    examples: Sequence[str]

    def fault(self, query: str, kind: QuestionKind, texts: Sequence[str]) -> tuple[Reason, str] | None:
        """Returns the first reason to refuse a question, with the details, or `None`."""
        if fault := text_fault(query):
            return "form", f"the query {fault}"
        if is_refusal(query):
            return "refusal", shortened(query)
        words = size(pieces(query))
        if not kind.least <= words <= kind.most:
            return "length", f"{words:g} words; {kind.name} has {kind.least:g} to {kind.most:g}"
        script = _SCRIPTS.get(self.language) or main_script("\n".join(texts))
        if script is not None and script_share(query, script) < _SCRIPT_SHARE:
            return "language", f"written in {_named(main_script(query))}, not {_named(script)}"
        mention = _MENTIONS.search(query)
        if mention is not None and not any(normalised(mention[0]) in normalised(text) for text in texts):
            return "mention", repr(mention[0])
        for text in texts:
            longest, share = copied(query, text)
            if size(pieces(longest)) >= self.copied_words or share >= _COPIED_SHARE:
                return "copy", repr(longest)
        for example in self.examples:
            one, other = normalised(query), normalised(example)
            if one == other or overlap(one, other) >= _LIKE_AN_EXAMPLE:
                return "example", repr(example)
        return None


def _named(script: str | None) -> str:
    return {"CJK": "Chinese characters", "HIRAGANA": "Japanese", None: "no letters"}.get(script, str(script).title())
