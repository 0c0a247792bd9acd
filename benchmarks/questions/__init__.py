"""Questions about the standard library, each with the names that answer it.

The labels were decided by reading the documentation, not by what a model finds. Where several entries of the corpus
truly answer a question, all of them count; a module or a base class counts where its passage names the right entry or
says that it does what was asked. Every label is in the corpus of Python 3.10 to 3.13, so what only some of them have
is no label. For all kinds but identifier and foreign, what BM25 and MiniLM found first for the questions added last was
read too, and labelled where it answers, so that few right answers are without a label.

`labelling` says which kinds of questions there are and what a question is, the other modules hold them.
"""

from __future__ import annotations

from benchmarks.questions.elsewhere import ANALOGIES, FOREIGN
from benchmarks.questions.how_to import HOW_TO
from benchmarks.questions.labelling import KINDS, Kind, Question
from benchmarks.questions.lookups import IDENTIFIERS, KEYWORDS
from benchmarks.questions.problems import CONTRASTS, SYMPTOMS

__all__ = ["KINDS", "QUESTIONS", "Kind", "Question"]

QUESTIONS: tuple[Question, ...] = (*HOW_TO, *SYMPTOMS, *CONTRASTS, *ANALOGIES, *KEYWORDS, *IDENTIFIERS, *FOREIGN)
"""All labelled questions, by kind."""
