"""Makes questions from documents with a chat model."""

from __future__ import annotations

import os
from functools import partial

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.training.queries.plan import MadeQueries, QueryPlan
from bge_integrations.training.queries.settings import QuerySettings
from bge_integrations.training.rows.data import TrainingData

__all__ = ["amake_queries", "make_queries"]


def make_queries(
    documents: object,
    llm: object,
    *,
    encoder: object | None = None,
    settings: QuerySettings | None = None,
    test: TrainingData | RetrievalData | None = None,
    cache: EvaluationCache | None = None,
    part: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> MadeQueries:
    """Makes questions from documents with a chat model, to train on.

    Each passage is one call, with all kinds of question that are about one passage. Kinds of several passages are a
    call for each group. An answer that can't be used is asked for again, with the reason. A question stays if

    - it is in the language of its passage, of a usual length, no refusal, and does not mention "the passage";
    - it copies no words of its passage, and repeats no example of the user's and no test question;
    - it is not nearly the same as an earlier question;
    - the start model finds its passage within rank 20 of all passages.

    Each passage is asked about by itself. Changed, new or reordered documents change nothing for the others. The
    function also works where an event loop is running. After an interrupt, `part` has all finished answers. To look at
    the costs first, make a `QueryPlan` with the same arguments, look at its `estimate`, and call its `run`.

    Args:
        documents: LangChain documents, LlamaIndex nodes, texts, pairs of an id and a text, or texts by id: passages as
            they are indexed. Nothing is cut here. The passages are the texts that the framework embeds.
        llm: A chat model of LangChain or LlamaIndex, or a function from a prompt to the answer. One that is not `async`
            is called from several threads, unless `settings.concurrency` is 1.
        encoder: The model that training starts from: a `BgeEncoder`, a `BgeM3Encoder`, or embeddings of LangChain or
            LlamaIndex. `None`: nothing is compared by vectors, and the report says so.
        settings: What is asked for, and how the answers are checked; `None`: the defaults.
        test: Questions to judge by later. A made question that shares five words in a row with one of them is refused.
        cache: Keeps vectors of encoders of this package on disk; `None`: nothing is kept.
        part: A file that keeps the answers. They are used again for equal passages, prompts and chat models. The file
            stays at the end.
        show_progress: Whether to show progress bars.

    Raises:
        SettingsError: An argument is wrong, or `part` is a file of another kind.
        TrainingDataError: The documents have no text, or no question stays; the error says why.
        ChatModelError: The chat model fails on one passage after the other.
        OSError: `part` can't be read or written.
        BgeError: Embedding fails.
    """
    return QueryPlan(
        documents,
        llm,
        encoder=encoder,
        settings=settings,
        test=test,
        cache=cache,
        part=part,
        show_progress=show_progress,
    ).run()


async def amake_queries(
    documents: object,
    llm: object,
    *,
    encoder: object | None = None,
    settings: QuerySettings | None = None,
    test: TrainingData | RetrievalData | None = None,
    cache: EvaluationCache | None = None,
    part: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> MadeQueries:
    """Async form of `make_queries`. An `async` function is called on the running event loop."""
    make = partial(QueryPlan, encoder=encoder, settings=settings, test=test, cache=cache, part=part)
    plan = await in_thread(partial(make, documents, llm, show_progress=show_progress), own=True)
    return await plan.arun()
