"""Notes what LlamaIndex tells its handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index_instrumentation import get_dispatcher


class _Events(BaseEventHandler):
    events: list[BaseEvent] = []  # noqa: RUF012 - a pydantic field

    def handle(self, event: BaseEvent, **_: Any) -> None:  # noqa: ANN401
        self.events.append(event)


@contextmanager
def watched() -> Iterator[tuple[list[BaseEvent], list[SimpleSpan]]]:
    """Gives the events and the finished spans of what happens meanwhile."""
    root = get_dispatcher()
    events, spans = _Events(events=[]), SimpleSpanHandler()
    root.add_event_handler(events)
    root.add_span_handler(spans)
    try:
        yield events.events, spans.completed_spans
    finally:
        root.event_handlers.remove(events)
        root.span_handlers.remove(spans)


def observed(embedding: Any) -> tuple[list[type], list[str]]:  # noqa: ANN401 - any embedding
    """Returns the events, and the names of the spans, of a query and of a call with two texts."""
    with watched() as (events, spans):
        embedding.get_query_embedding("fox")
        embedding.get_text_embedding_batch(["fox", "dog"])
    names = [span.id_.split("-")[0].split(".")[-1] for span in spans]
    return [type(event) for event in events], sorted(names)
