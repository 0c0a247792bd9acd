"""Checks the texts of a call before llama-index cuts them into batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bge_integrations.calls.inputs import check_texts
from bge_integrations.calls.progress import Progress
from bge_integrations.calls.waiting import OnLoop


class CheckedBatches:
    """Checks the container of texts, in front of llama-index's base class.

    The base class iterates over any container: it would embed the column names of a table, or the characters of a
    `str`.
    """

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401 - llama-index's signature
    ) -> list[Any]:
        """Embeds texts, `embed_batch_size` at a time.

        Args:
            texts: Texts.
            show_progress: Whether to show one progress bar for the whole call, in place of the settings' own bars.
            **kwargs: Further arguments of llama-index.

        Returns:
            One embedding a text, in the order of the texts.

        Raises:
            InputTypeError: `texts` is not a list of texts, or an element is not a `str`.
            BgeError: Embedding fails.
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
        """Async form of `get_text_embedding_batch`. It does not block the event loop."""
        base: Any = super()
        checked = await OnLoop(texts).run(partial(check_texts, texts, "aget_text_embedding_batch"))
        with _progress(checked, show_progress):
            found: list[Any] = await base.aget_text_embedding_batch(checked, **kwargs)
        return found


@contextmanager
def _progress(texts: list[str], shown: bool) -> Iterator[None]:
    """Shows one progress bar for all texts of a call.

    llama-index's own bar moves only after each of its batches, which have up to 2048 texts here.
    """
    if not shown or not texts:
        yield
        return
    with Progress(len(texts), shown=True, title="Generating embeddings") as progress, progress.whole():
        yield
