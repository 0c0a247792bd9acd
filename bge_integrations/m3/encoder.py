"""BgeM3Encoder: bge-m3's dense vectors, lexical weights and token vectors from one forward pass."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from bge_integrations.calls.call import Call, call_span
from bge_integrations.calls.handle import ModelHandle
from bge_integrations.calls.inputs import check_text, check_texts, slices_of_pairs
from bge_integrations.calls.lengths import LengthReport
from bge_integrations.calls.m3 import M3Output, Wanted, m3_call
from bge_integrations.calls.progress import Progress
from bge_integrations.calls.waiting import Blocking, OnLoop, Waiter, run_blocking
from bge_integrations.catalogue.instructions import Role
from bge_integrations.encoder import BgeEncoder
from bge_integrations.m3.scores import M3Weights, mixed, mixed_pairs
from bge_integrations.settings import EncoderSettings, ModelOptions, ModelSettings

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel
    from bge_integrations.backend.scheduler import Priority

_PAIRS_A_SLICE = 256
"""Token vectors of this many pairs take up to 2 GB at 1024 tokens a text, and 200 MB at 100 tokens."""

_SIDES: tuple[Role, ...] = ("query", "document")

_Scoring = Callable[[str, dict[str, int], Waiter], Coroutine[Any, Any, NDArray[np.float32]]]
"""Computes the result of a public method. Its arguments: the method's name, the attributes of its span, a waiter."""


class BgeM3Encoder(ModelHandle[ModelSettings]):
    """Encodes texts with bge-m3, or a model fine-tuned from it. One forward pass gives any of its three outputs.

    While this encoder exists, new encoders and embeddings with equal loading settings use its model and load no other.
    Several threads can use one encoder. Pickles and copies contain the settings, not the weights.

    Example:
        ```python
        m3 = BgeM3Encoder("BAAI/bge-m3")
        found = m3.encode(["What is BGE M3?"], colbert=False)
        scores = m3.score("What is BGE M3?", passages)
        ```
    """

    _purpose = "m3"
    _settings_kind = ModelSettings

    def __init__(self, model_name: str | os.PathLike[str] = "BAAI/bge-m3", **options: Unpack[ModelOptions]) -> None:
        """Loads the model, or uses the loaded model of encoders with equal loading settings.

        Args:
            model_name: Hub id, local folder, or folder made by `bge prepare --purpose m3`.
            **options: The fields of `bge_integrations.settings.ModelSettings`, which describes them.

        Raises:
            TypeError: An option is unknown.
            SettingsError: A setting is invalid or not supported. The message gives its value and the choices.
            UnsupportedModelError: The checkpoint lacks the heads for lexical weights and token vectors.
            ModelLoadError: The checkpoint can't be found, downloaded or read, or it would run code.
            MissingExtraError: The chosen engine, or the quantiser for int8, is not installed.
        """
        self._start(ModelSettings(model_name=cast("str", model_name), **options))
        self._loaded()

    def encode_queries(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """Encodes queries. Their batches go before documents that are queued.

        Args:
            texts: Queries. An iterator is read in slices, so its texts need not all fit into memory.
            dense: Whether to return dense vectors.
            sparse: Whether to return lexical weights.
            colbert: Whether to return token vectors. They take about a hundred times the memory of a dense vector.

        Returns:
            The chosen outputs, in the order of the texts.

        Raises:
            InputTypeError: `texts` is a bare `str`, or an element is not a `str`.
            InputValueError: UTF-8 can't encode a text.
            SettingsError: No output is chosen.
            TruncationError: A text is over the limit, and `on_truncation` is `"error"`.
            NonFiniteOutputError: The model gave NaN or infinity.
            ModelClosedError: The encoder was closed.
        """
        return self._call(Wanted(dense, sparse, colbert), "query").run(texts, "encode_queries")

    def encode_documents(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """Encodes documents. Arguments, result and errors are those of `encode_queries`."""
        return self._call(Wanted(dense, sparse, colbert), "document").run(texts, "encode_documents")

    async def aencode_queries(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """Async form of `encode_queries`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        call = await self._call_async(Wanted(dense, sparse, colbert), "query")
        return await call.run_async(texts, "aencode_queries")

    async def aencode_documents(
        self, texts: Iterable[str], *, dense: bool = True, sparse: bool = True, colbert: bool = True
    ) -> M3Output:
        """Async form of `encode_documents`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        call = await self._call_async(Wanted(dense, sparse, colbert), "document")
        return await call.run_async(texts, "aencode_documents")

    def score(
        self, query: str, passages: Iterable[str], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Scores passages for one query by the weighted mean of the dense, the lexical and the token-wise score.

        Args:
            query: Query.
            passages: Passages.
            weights: An `M3Weights`, or three numbers in the order dense, sparse, colbert. `None`: 0.4, 0.2 and 0.4, the
                example of the model's authors. An output of weight 0 is not computed.

        Returns:
            float32 array of shape [passages], in the order of the passages. A higher score is better.

        Raises:
            BgeError: As `encode_queries`.
        """
        return self._run("score", partial(self._score, query, passages, M3Weights.read(weights)))

    async def ascore(
        self, query: str, passages: Iterable[str], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Async form of `score`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        steps = partial(self._score, query, passages, M3Weights.read(weights))
        return await self._run_async("ascore", steps, OnLoop([query], passages))

    def score_pairs(
        self, pairs: Iterable[tuple[str, str]], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Scores pairs of query and passage, some hundred pairs at a time.

        Args:
            pairs: Pairs (query, passage). An iterator is read in slices, so its texts need not all fit into memory.
            weights: As for `score`.

        Returns:
            float32 array of shape [pairs], in the order of the pairs. A higher score is better.

        Raises:
            BgeError: As `encode_queries`.
        """
        return self._run("score_pairs", partial(self._score_pairs, pairs, M3Weights.read(weights)))

    async def ascore_pairs(
        self, pairs: Iterable[tuple[str, str]], *, weights: M3Weights | Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Async form of `score_pairs`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        steps = partial(self._score_pairs, pairs, M3Weights.read(weights))
        return await self._run_async("ascore_pairs", steps, OnLoop(pairs))

    def dense_encoder(self) -> BgeEncoder:
        """Returns an encoder of dense vectors that uses this model."""
        settings = {name: getattr(self.settings, name) for name in ModelOptions.__annotations__}
        return BgeEncoder.from_settings(EncoderSettings(model_name=self.settings.model_name, **settings))

    def tokens(self, weights: Mapping[int, float]) -> dict[str, float]:
        """Returns the lexical weights of one text by token instead of token id, for people to read.

        Args:
            weights: Lexical weights by token id.
        """
        self._loaded().require_tokenizer("The text of tokens")
        tokenizer = self._loaded().tokenizer
        return {tokenizer.token(id_): weight for id_, weight in weights.items()}

    @property
    def dimension(self) -> int:
        """Length of the dense vectors and of the token vectors."""
        return self._loaded().facts.dimension

    def _check_against(self, model: LoadedModel) -> None:
        super()._check_against(model)
        for role in _SIDES:
            if instruction := self._instruction(model, role):
                model.share(instruction).check(self.settings, self._limit_of(model))

    def _instruction(self, model: LoadedModel, role: Role) -> str:
        explicit = self.settings.query_instruction if role == "query" else None
        return self._resolve(model, role, explicit=explicit).prefix

    def _run(self, method: str, scoring: _Scoring) -> NDArray[np.float32]:
        self._loaded()
        with call_span(method, self.settings) as attributes:
            return run_blocking(scoring(method, attributes, Blocking()))

    async def _run_async(self, method: str, scoring: _Scoring, waiter: Waiter) -> NDArray[np.float32]:
        await self._ready()
        with call_span(method, self.settings) as attributes:
            return await scoring(method, attributes, waiter)

    async def _score(
        self,
        query: str,
        passages: Iterable[str],
        shares: M3Weights,
        method: str,
        attributes: dict[str, int],
        waiter: Waiter,
    ) -> NDArray[np.float32]:
        asked = await waiter.run(partial(check_text, query, 0, "Query"))
        documents = await waiter.run(partial(check_texts, passages, method))
        whole = self._report()
        call = partial(self._call, shares.wanted, priority="interactive", whole=whole)
        found = await call("query", item="query").compute([asked], method, attributes, waiter)
        others = await call("document", item="passage").compute(documents, method, attributes, waiter)
        whole.warn()
        return await waiter.run(partial(mixed, shares, found, others))

    async def _score_pairs(
        self,
        pairs: Iterable[tuple[str, str]],
        shares: M3Weights,
        method: str,
        attributes: dict[str, int],
        waiter: Waiter,
    ) -> NDArray[np.float32]:
        count, slices = await waiter.run(partial(slices_of_pairs, pairs, method, _PAIRS_A_SLICE))
        whole, start, scores = self._report(), 0, [np.empty(0, dtype=np.float32)]
        with Progress(count, shown=self.settings.show_progress, unit="pair") as progress:
            while (part := await waiter.run(partial(next, slices, None))) is not None:
                before = whole.tokens
                call = partial(self._call, shares.wanted, priority="bulk", first=start, whole=whole)
                queries, passages = ([pair[side] for pair in part] for side in (0, 1))
                found = await call("query", item="query of pair").compute(queries, method, attributes, waiter)
                others = await call("document", item="passage of pair").compute(passages, method, attributes, waiter)
                scores.append(await waiter.run(partial(mixed_pairs, shares, found, others)))
                progress.add(len(part), whole.tokens - before)
                start += len(part)
        whole.warn()
        return np.concatenate(scores)

    def _report(self) -> LengthReport:
        """Returns the common length report of several inner calls."""
        return LengthReport(self.max_length, self.settings.on_truncation, "text")

    async def _call_async(self, wanted: Wanted, role: Role) -> Call[str, M3Output]:
        await self._ready()
        return self._call(wanted, role)

    def _call(
        self,
        wanted: Wanted,
        role: Role,
        *,
        priority: Priority | None = None,
        item: str = "text",
        first: int = 0,
        whole: LengthReport | None = None,
    ) -> Call[str, M3Output]:
        instruction = self._instruction(self._loaded(), role)
        terms = self._terms(priority or ("interactive" if role == "query" else "bulk"))
        return m3_call(dataclasses.replace(terms, item=item, first=first, whole=whole), wanted, instruction)
