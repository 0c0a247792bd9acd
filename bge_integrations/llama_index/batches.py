"""What embeddings in LlamaIndex check before llama-index cuts the texts of a call into batches."""

from __future__ import annotations

from typing import Any

from bge_integrations.validation import check_texts


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
            show_progress: Whether to show llama-index's progress bar.
            **kwargs: What else llama-index takes.

        Returns:
            One embedding a text, in the order given.

        Raises:
            InputTypeError: No list of texts, or an element that is no `str`.
            BgeError: Whatever embedding raises.
        """
        base: Any = super()
        found: list[Any] = base.get_text_embedding_batch(
            check_texts(texts, "get_text_embedding_batch"), show_progress, **kwargs
        )
        return found

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401 - as above
    ) -> list[Any]:
        """As `get_text_embedding_batch`, without blocking the event loop."""
        base: Any = super()
        found: list[Any] = await base.aget_text_embedding_batch(
            check_texts(texts, "aget_text_embedding_batch"), show_progress, **kwargs
        )
        return found
