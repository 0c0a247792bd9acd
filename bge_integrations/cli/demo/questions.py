"""The questions that the demo asks, each with the names that answer it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUESTIONS", "Question"]


@dataclass(frozen=True)
class Question:
    """A question to the documentation.

    Attributes:
        text: The question as it would be asked.
        answers: Names of the entries that answer it, the best known first; empty for a question of the user's own.
    """

    text: str
    answers: tuple[str, ...] = ()


QUESTIONS = (
    Question("how do I copy a whole directory tree?", ("shutil.copytree",)),
    Question("delete a folder together with everything in it", ("shutil.rmtree",)),
    Question("remove the common indentation from a block of text", ("textwrap.dedent",)),
    Question("largest number that divides both integers", ("math.gcd",)),
    Question("pick several different winners from a list of participants", ("random.sample",)),
    Question("find the most frequent words in a list", ("collections.Counter.most_common", "collections.Counter")),
    Question(
        "remember the results of expensive calls so they are not computed again",
        ("functools.cache", "functools.lru_cache"),
    ),
    Question("how many processors does this machine have?", ("os.cpu_count",)),
    Question("does this year have 366 days?", ("calendar.isleap",)),
    Question(
        "escape special characters so they can be put in a URL",
        ("urllib.parse.quote", "urllib.parse.quote_from_bytes", "urllib.parse.quote_plus", "urllib.parse.urlencode"),
    ),
    Question("give up on an awaitable if it takes too long", ("asyncio.wait_for",)),
    Question("split a command line the way the shell does", ("shlex.split",)),
)
"""Everyday questions; every answer is among the docstrings of Python 3.10 to 3.14."""
