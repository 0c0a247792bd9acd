"""Makes questions from documents with a chat model."""

from __future__ import annotations

from functools import partial

from typing_extensions import Unpack

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.training.queries.plan import MadeQueries, QueryOptions, QueryPlan

__all__ = ["amake_queries", "make_queries"]


def make_queries(documents: object, llm: object, **options: Unpack[QueryOptions]) -> MadeQueries:
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
        **options: `encoder`, `settings`, `test`, `cache`, `part` and `show_progress`; see `QueryOptions`.

    Raises:
        SettingsError: An argument is wrong, or `part` is a file of another kind.
        TrainingDataError: The documents have no text, or no question stays; the error says why.
        ChatModelError: The chat model fails on one passage after the other.
        OSError: `part` can't be read or written.
        BgeError: Embedding fails.
    """
    return QueryPlan(documents, llm, **options).run()


async def amake_queries(documents: object, llm: object, **options: Unpack[QueryOptions]) -> MadeQueries:
    """Async form of `make_queries`. An `async` function is called on the running event loop."""
    plan = await in_thread(partial(QueryPlan, documents, llm, **options), own=True)
    return await plan.arun()
