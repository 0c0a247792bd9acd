"""BgeM3Encoder: bge-m3's dense vectors, lexical weights and token vectors, in one forward pass."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from bge_integrations.driving import in_thread
from bge_integrations.encoder import BgeEncoder
from bge_integrations.holder import ModelHolder
from bge_integrations.m3.encoding import M3Call, M3Output, Wanted
from bge_integrations.m3.scoring import M3Weights, mixed, mixed_pairs
from bge_integrations.settings import EncoderSettings, ModelOptions, ModelSettings
from bge_integrations.validation import check_text, check_texts, slices_of_pairs

_PAIRS_A_SLICE = 256
"""Token vectors of as many pairs take up to 2 GB at 1024 tokens a text, and 200 MB at 100."""


class BgeM3Encoder(ModelHolder[ModelSettings]):
    """Encodes texts with bge-m3, or what is fine-tuned from it, in any of its three ways at once.

    While it is alive, encoders and embeddings of the same model with equal loading settings use its model instead of
    loading another. Safe to use from several threads. Pickles and copies carry settings, never weights.

    Example:
        ```python
        m3 = BgeM3Encoder("BAAI/bge-m3")
        found = m3.encode(["What is BGE M3?"], colbert=False)
        scores = m3.score("What is BGE M3?", passages)
        ```
    """

    _purpose = "m3"

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-m3", **options: Unpack[ModelOptions]) -> None:
        """Loads the model, or joins the encoders that already hold it.

        Args:
            model_name: Hub id, local folder, or folder made by `bge prepare --purpose m3`.
            **options: As `BgeEncoder` takes them: `device`, `precision`, `engine`, `max_length`, `query_instruction`
                (before each query; bge-m3 wants none), `on_truncation`, `revision`, `cache_folder`, `token`,
                `trust_remote_code`, `local_files_only`, `allow_pickle_weights`, `show_progress`, `batch_tokens`,
                `batch_size`, `threads`, `max_queued_texts`, `transformers_kwargs`.

        Raises:
            SettingsError: A setting that can't be honoured, named with its value and the choices.
            UnsupportedModelError: The checkpoint lacks the heads for lexical weights and token vectors.
            ModelLoadError: The checkpoint can't be found, fetched or read, or would run code.
            MissingExtraError: The engine named is not installed, or int8 needs the quantiser, which is not.
        """
        self._start(ModelSettings(model_name=cast("str", model_name), **options))
        self._loaded()

    def encode_queries(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """Encodes queries. They go before documents that are queued.

        Args:
            texts: The queries.
            dense: Give dense vectors.
            sparse: Give lexical weights.
            colbert: Give token vectors.

        Returns:
            What was asked for, in the order of the texts.

        Raises:
            InputTypeError: A bare `str`, or an element that is no `str`.
            InputValueError: A text that UTF-8 can't write.
            SettingsError: Nothing is asked for.
            TruncationError: A text over the limit, under `on_truncation="error"`.
            NonFiniteEmbeddingError: The model gave NaN or infinity.
            EncoderClosedError: After `close()`.
        """
        return self._call(Wanted(dense, sparse, colbert), is_query=True).run(texts, "encode_queries")

    def encode_documents(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """Encodes documents; see `encode_queries`.

        Args:
            texts: The documents. An iterator is read in slices, so that its texts need not all be in memory.
            dense: Give dense vectors.
            sparse: Give lexical weights.
            colbert: Give token vectors, which take some hundred times the memory of a dense one.

        Returns:
            What was asked for, in the order of the texts.

        Raises:
            BgeError: As `encode_queries`.
        """
        return self._call(Wanted(dense, sparse, colbert), is_query=False).run(texts, "encode_documents")

    async def aencode_queries(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """As `encode_queries`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        call = await self._call_async(Wanted(dense, sparse, colbert), is_query=True)
        return await call.run_async(texts, "aencode_queries")

    async def aencode_documents(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """As `encode_documents`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        call = await self._call_async(Wanted(dense, sparse, colbert), is_query=False)
        return await call.run_async(texts, "aencode_documents")

    def score(
        self, query: str, passages: Iterable[str], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Scores passages for one query by the weighted mean of the dense, the lexical and the token-wise score.

        Args:
            query: The query.
            passages: The passages.
            weights: Of the three: an `M3Weights`, or three numbers in the order dense, sparse, colbert; None takes 0.4,
                0.2 and 0.4, the authors' example. What weighs 0 is not computed.

        Returns:
            float32, shape [passages]; the higher, the better.

        Raises:
            BgeError: As `encode_queries`.
        """
        shares = M3Weights.read(weights)
        documents = check_texts(passages, "score")
        wanted = shares.wanted
        found = self._call(wanted, is_query=True).run([check_text(query, 0, "Query")], "score")
        return mixed(shares, found, self._call(wanted, is_query=False, is_urgent=True).run(documents, "score"))

    async def ascore(
        self, query: str, passages: Iterable[str], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """As `score`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        shares = M3Weights.read(weights)
        documents = check_texts(passages, "ascore")
        wanted = shares.wanted
        call = await self._call_async(wanted, is_query=True)
        found = await call.run_async([check_text(query, 0, "Query")], "ascore")
        others = await self._call(wanted, is_query=False, is_urgent=True).run_async(documents, "ascore")
        return await in_thread(lambda: mixed(shares, found, others))

    def score_pairs(
        self, pairs: Iterable[tuple[str, str]], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Scores pairs of query and passage, each only with the other, some hundred pairs at a time.

        Each of these slices gives a warning of its own where texts are cut.

        Args:
            pairs: The pairs. An iterator is read in slices, so that its texts need not all be in memory.
            weights: As for `score`.

        Returns:
            float32, shape [pairs].

        Raises:
            BgeError: As `encode_queries`.
        """
        shares = M3Weights.read(weights)
        scores = [np.empty(0, dtype=np.float32)]
        for part, calls in self._calls_of_pairs(pairs, "score_pairs", shares):
            queries, passages = (call.run(texts, "score_pairs") for call, texts in zip(calls, part, strict=True))
            scores.append(mixed_pairs(shares, queries, passages))
        return np.concatenate(scores)

    async def ascore_pairs(
        self, pairs: Iterable[tuple[str, str]], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """As `score_pairs`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        shares = M3Weights.read(weights)
        scores = [np.empty(0, dtype=np.float32)]
        await in_thread(self._loaded)
        for part, calls in self._calls_of_pairs(pairs, "ascore_pairs", shares):
            queries = await calls[0].run_async(part[0], "ascore_pairs")
            passages = await calls[1].run_async(part[1], "ascore_pairs")
            scores.append(await in_thread(partial(mixed_pairs, shares, queries, passages)))
        return np.concatenate(scores)

    def dense_encoder(self) -> BgeEncoder:
        """Returns an encoder of dense vectors that uses this model."""
        settings = {name: getattr(self.settings, name) for name in ModelOptions.__annotations__}
        return BgeEncoder.from_settings(EncoderSettings(model_name=self.settings.model_name, **settings))

    def tokens(self, weights: Mapping[int, float]) -> dict[str, float]:
        """Writes lexical weights by token instead of token id, for people to read.

        Args:
            weights: Of one text.
        """
        tokenizer = self._loaded().tokenizer
        return {tokenizer.token(id_): weight for id_, weight in weights.items()}

    @property
    def dimension(self) -> int:
        """Length of the dense vectors and of the token vectors."""
        return self._loaded().facts.dimension

    def _calls_of_pairs(
        self, pairs: Iterable[tuple[str, str]], method: str, shares: M3Weights
    ) -> Iterator[tuple[tuple[list[str], list[str]], tuple[M3Call, M3Call]]]:
        """Cuts pairs into slices; yields the queries and passages of each, and the calls that encode them."""
        _, slices = slices_of_pairs(pairs, method, _PAIRS_A_SLICE)
        start = 0
        for part in slices:
            texts = [query for query, _ in part], [passage for _, passage in part]
            calls = tuple(
                self._call(shares.wanted, is_query=is_query, is_urgent=False, item=item, first=start)
                for is_query, item in ((True, "query of pair"), (False, "passage of pair"))
            )
            yield texts, (calls[0], calls[1])
            start += len(part)

    async def _call_async(self, wanted: Wanted, *, is_query: bool) -> M3Call:
        if self._model is None:
            await in_thread(self._loaded)
        return self._call(wanted, is_query=is_query)

    def _call(
        self, wanted: Wanted, *, is_query: bool, is_urgent: bool | None = None, item: str = "text", first: int = 0
    ) -> M3Call:
        instruction = self.settings.query_instruction if is_query else None
        terms = self._terms(is_urgent=is_query if is_urgent is None else is_urgent)
        return M3Call(dataclasses.replace(terms, item=item, first=first), wanted, instruction or "")
