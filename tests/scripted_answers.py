"""What scripted chat models answer. It imports no framework."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

Respond = Callable[[str], str]

_PASSAGE = re.compile(r'<(?:passage number|段落 编号)="\d+">\n(.*?)\n</(?:passage|段落)>', re.DOTALL)
_CHINESE = {"question": "问题", "keywords": "词", "task": "事情", "several": "关系"}
_WANTED = re.compile(r"^- (\d+) (?:of the kind|条，类型) '(\w+)'", re.MULTILINE)


def passages_in(prompt: str) -> list[str]:
    """Returns the passages that a prompt shows."""
    return _PASSAGE.findall(prompt)


def wanted_in(prompt: str) -> dict[str, int]:
    """Returns how many questions of each kind a prompt asks for."""
    return {kind: int(count) for count, kind in _WANTED.findall(prompt)}


def answer(*items: tuple[str, str]) -> str:
    """Returns an answer in the right form."""
    return json.dumps([{"kind": kind, "query": query} for kind, query in items], ensure_ascii=False)


def good(prompt: str) -> str:
    """Answers a prompt as a good model does: other questions for other passages, and no words of theirs in a row."""
    first = "+".join(text.split()[0].strip(".,:") if text.isascii() else text[:2] for text in passages_in(prompt))
    is_english = prompt.startswith("Below")
    return answer(
        *(
            (kind, f"{kind} {number} on {first} please" if is_english else f"请问{first}的{_CHINESE[kind]}第{number}条")
            for kind, count in wanted_in(prompt).items()
            for number in range(count)
        )
    )


def by_passage(answers: Mapping[str, Sequence[tuple[str, str]]]) -> Respond:
    """Returns a function that gives the answer to the first passage that a prompt shows; others have nothing to ask."""
    return lambda prompt: answer(*answers.get(passages_in(prompt)[0], ()))


class Counting:
    """Counts the calls of a function, and how many run at once."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._lock = threading.Lock()
        self.prompts: list[str] = []
        self.running = 0
        self.most = 0

    def __call__(self, prompt: str) -> str:
        with self._lock:
            self.prompts.append(prompt)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            return self._respond(prompt)
        finally:
            with self._lock:
                self.running -= 1


def in_turn(*answers: str | BaseException) -> Respond:
    """Returns a function that gives an answer, or raises an error, for each call in turn; the last one for ever."""
    left: Iterator[str | BaseException] = iter(answers[:-1])

    def respond(prompt: str) -> str:
        found = next(left, answers[-1])
        if isinstance(found, BaseException):
            raise found
        return found

    return respond


def texts_of(
    count: int, words: Sequence[str] = ("rain", "bread", "steel", "tea", "glass", "wool", "salt")
) -> list[str]:
    """Returns different passages, each with a first word of its own."""
    return [
        f"{words[number % len(words)].title()}{number} is made where old masters of number {number} have their works."
        for number in range(count)
    ]
