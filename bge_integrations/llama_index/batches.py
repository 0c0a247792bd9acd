"""What embeddings in LlamaIndex check before llama-index cuts the texts of a call into batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bge_integrations.calls.inputs import check_texts
from bge_integrations.calls.progress import Progress
from bge_integrations.calls.waiting import OnLoop


class CheckedBatches:
    """Stands before llama-index's base class, which batches what texts give when they are iterated over.

    A table gives the names of its columns then, and a bare `str` its characters.
    """

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401 - llama-index's signature
    ) -> list[Any]:
        """Embeds texts, `embed_batch_size` at a time.

        Args:
            texts: The texts.
            show_progress: Whether to show a progress bar. It takes the place of those that the settings ask for.
            **kwargs: What else llama-index takes.

        Returns:
            One embedding a text, in the order given.

        Raises:
            InputTypeError: No list of texts, or an element that is no `str`.
            BgeError: Whatever embedding raises.
        """
        base: Any = super()
        checked = check_texts(texts, "get_text_embedding_batch")
        with _progress(checked, show_progress):
            found: list[Any] = base.get_text_embedding_batch(checked, **kwargs)
        return found

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401 - as above
    ) -> list[Any]:
        """As `get_text_embedding_batch`, without blocking the event loop."""
        base: Any = super()
        checked = await OnLoop(texts).run(partial(check_texts, texts, "aget_text_embedding_batch"))
        with _progress(checked, show_progress):
            found: list[Any] = await base.aget_text_embedding_batch(checked, **kwargs)
        return found


@contextmanager
def _progress(texts: list[str], shown: bool) -> Iterator[None]:
    """Shows a bar for all texts of a call, in the place of llama-index's.

    That one moves once a batch of llama-index's, and those are of up to 2048 texts here.
    """
    if not shown or not texts:
        yield
        return
    with Progress(len(texts), shown=True, title="Generating embeddings") as progress, progress.whole():
        yield
