"""Common base of the LlamaIndex rerankers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.errors import InputTypeError
from bge_integrations.llama_index.base import BgeModel

RETRIEVAL_SCORE = "retrieval_score"
"""The key of the retriever's score in a node's metadata."""

_dispatcher = get_dispatcher(__name__)
_FEW_NODES = 128  # converted to texts and copied in about a millisecond


class ScoringPostprocessor(BgeModel, BaseNodePostprocessor):
    """Sorts nodes by their scores for a query, and keeps the best."""

    top_n: int = Field(default=2, description="Number of nodes to keep.", gt=0)
    keep_retrieval_score: bool = Field(
        default=False,
        description="Keep the retriever's score as metadata['retrieval_score'], which embedders and LLMs do not read.",
    )
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="Metadata that the model reads together with a node's text."
    )
    show_progress: bool = Field(default=False, description="No effect: queries never show a progress bar.")

    # Not marked as abstract, for the reason in `Adapter`.
    def _rate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Returns the scores of passages for a query, shape [passages]."""
        raise NotImplementedError

    async def _arate(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Async form of `_rate`. It does not block the event loop."""
        raise NotImplementedError

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked(query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as report:
            return report(self._best(nodes, self._rate(query.query_str, self._texts(nodes))))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked(query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as report:
            if len(nodes) <= _FEW_NODES:
                return report(self._best(nodes, await self._arate(query.query_str, self._texts(nodes))))
            scores = await self._arate(query.query_str, await in_thread(partial(self._texts, nodes)))
            return report(await in_thread(partial(self._best, nodes, scores)))

    @contextmanager
    def _reported(
        self, nodes: list[NodeWithScore], query: QueryBundle
    ) -> Iterator[Callable[[list[NodeWithScore]], list[NodeWithScore]]]:
        """Reports the start to handlers. Yields a function that reports the reranked nodes and returns them."""
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n, model_name=self.model_name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model_name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:

            def report(best: list[NodeWithScore]) -> list[NodeWithScore]:
                event.on_end(payload={EventPayload.NODES: best})
                _dispatcher.event(ReRankEndEvent(nodes=best))
                return best

            yield report

    def _texts(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [scored.node.get_content(metadata_mode=self.metadata_mode) for scored in nodes]

    def _best(self, nodes: Sequence[NodeWithScore], scores: NDArray[np.float32]) -> list[NodeWithScore]:
        order = np.argsort(-scores, kind="stable")[: self.top_n]
        return [self._rescored(nodes[place], float(scores[place])) for place in order]

    def _rescored(self, scored: NodeWithScore, score: float) -> NodeWithScore:
        node = _with_retrieval_score(scored.node, scored.score) if self.keep_retrieval_score else scored.node
        rescored: NodeWithScore = scored.model_copy(update={"node": node, "score": score})
        return rescored


def _checked(query: QueryBundle | None) -> QueryBundle:
    if query is None:
        raise InputTypeError("There is no query to score nodes for; give query_str or query_bundle.")
    return query


def _with_retrieval_score(node: BaseNode, score: float | None) -> BaseNode:
    """Returns a copy with the score in its metadata, where no embedder, reranker or LLM reads it."""
    hidden = {
        name: list(dict.fromkeys([*getattr(node, name), RETRIEVAL_SCORE]))
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    copied: BaseNode = node.model_copy(update={"metadata": {**node.metadata, RETRIEVAL_SCORE: score}, **hidden})
    return copied
