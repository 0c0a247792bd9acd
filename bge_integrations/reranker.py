"""BgeReranker: scores passages for a query."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from bge_integrations.backend.checkpoint.questions import require_question
from bge_integrations.backend.engines.interface import ScoringOptions
from bge_integrations.backend.text.pairs import Pair, PairTokenizer
from bge_integrations.calls.call import Call
from bge_integrations.calls.handle import ModelHandle
from bge_integrations.calls.inputs import check_text, check_texts
from bge_integrations.calls.scoring import scoring_call
from bge_integrations.calls.waiting import OnLoop
from bge_integrations.errors import SettingsError
from bge_integrations.settings import RerankerOptions, RerankerSettings

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel
    from bge_integrations.backend.scheduler import Priority


_NAMESPACE_FORMAT = 1
"""Version of the key in `cache_namespace`. A change of this number invalidates every cached score."""


class BgeReranker(ModelHandle[RerankerSettings]):
    """Scores how well passages answer a query, with a BGE reranker or any other classifier with one output.

    The model reads query and passage together, so it is slower than comparing vectors, and better. Retrieve a hundred
    candidates by their vectors, then reorder them by their scores. Rerankers with equal loading settings share one
    model in memory. Several threads can use one reranker. Pickles and copies contain the settings, not the weights.

    Example:
        ```python
        reranker = BgeReranker("BAAI/bge-reranker-v2-m3")
        best = passages[int(reranker.score("what is a panda?", passages).argmax())]
        ```
    """

    _purpose = "scores"
    _settings_kind = RerankerSettings

    def __init__(self, model_name: str | os.PathLike[str], **options: Unpack[RerankerOptions]) -> None:
        """Loads the model, or uses the loaded model of rerankers with equal loading settings.

        Args:
            model_name: Hub id (`"BAAI/bge-reranker-v2-m3"`), local folder, or folder made by `bge prepare`.
            **options: The fields of `bge_integrations.settings.RerankerSettings`, which describes them. `max_length`
                counts query and passage together, without a decoder's prompt. `query_instruction=None` means the
                default prompt that was saved with a CrossEncoder. BGE's own rerankers have no such prompt.

        Raises:
            TypeError: An option is unknown.
            SettingsError: A setting is invalid or not supported. The message gives its value and the choices.
            UnsupportedModelError: The model is not a reranker.
            ModelLoadError: The checkpoint can't be found, downloaded or read, or it would run code.
            MissingExtraError: The chosen engine, or the quantiser for int8, is not installed.
        """
        self._start(RerankerSettings(model_name=cast("str", model_name), **options))
        self._loaded()

    def score(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """Scores passages for one query. Its batches go before pairs that `score_pairs` has queued.

        The passage of a pair over the limit is cut. The query is cut only if it leaves no room for the passage.

        Returns:
            float32 array of shape [passages], in the order of the passages. A higher score is better.

        Raises:
            InputTypeError: The query or a passage is not a `str`, or `passages` is a bare `str`.
            InputValueError: UTF-8 can't encode a text.
            TruncationError: A pair is over the limit, and `on_truncation` is `"error"`.
            NonFiniteOutputError: The model gave NaN or infinity.
            EngineFailedError: The engine fails on a pair, even in a batch of its own.
            ModelClosedError: The reranker was closed.
        """
        return self._call("interactive").run(_with_query(query, passages, "score"), "score")

    def score_pairs(self, pairs: Iterable[tuple[str, str]]) -> NDArray[np.float32]:
        """Scores pairs of query and passage.

        Args:
            pairs: Pairs (query, passage). An iterator is read in slices, so its texts need not all fit into memory.

        Returns:
            float32 array of shape [pairs], in the order of the pairs. A higher score is better.

        Raises:
            BgeError: As `score`.
        """
        return self._call("bulk").run(pairs, "score_pairs")

    async def ascore(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """Async form of `score`. It does not block the event loop. Cancelling it drops uncomputed pairs."""
        check = partial(_with_query, query, passages, "ascore")
        pairs = await OnLoop([query], passages).run(check)
        return await (await self._call_async("interactive")).run_async(pairs, "ascore")

    async def ascore_pairs(self, pairs: Iterable[tuple[str, str]]) -> NDArray[np.float32]:
        """Async form of `score_pairs`. It does not block the event loop. Cancelling it drops uncomputed pairs."""
        return await (await self._call_async("bulk")).run_async(pairs, "ascore_pairs")

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """The underlying CrossEncoder or decoder. It ignores these settings. Its own settings are read-only."""
        return self._loaded().original

    def cache_namespace(self) -> str:
        """Returns a name for the keys of a cache. It depends on everything that a score depends on.

        Returns:
            Letters, digits, `.`, `-` and `_`. The name is the same in every process for equal models and settings.
        """
        model = self._loaded()
        decoder, pairs = model.facts.decoder, self._pairs(model)
        options = self._decoder_options(model, pairs) if decoder else None
        facts = {
            "format": _NAMESPACE_FORMAT,
            "content": model.identity,
            "precision": model.request.precision,
            "transformers_kwargs": model.request.transformers_kwargs.as_dicts(),
            "instruction": self._instruction(model),
            "prompt": self.settings.prompt or (decoder.prompt if decoder else None),
            "max_length": self.max_length,
            "normalize": self.settings.normalize,
            "cutoff_layer": options.cutoff_layer if options else None,
            "compress_ratio": options.compress_ratio if options else None,
            "compress_layers": list(options.compress_layers) if options else None,
        }
        return self._cache_name("score", facts)

    def _check_against(self, model: LoadedModel) -> None:
        settings, decoder = self.settings, model.facts.decoder
        if decoder and decoder.prompt is None:
            require_question(settings.model_name, settings.prompt)
        super()._check_against(model)
        asked: dict[str, object] = {
            "prompt": settings.prompt,
            "cutoff_layers": settings.cutoff_layers,
            "compress_ratio": settings.compress_ratio,
            "compress_layers": settings.compress_layers,
        }
        known = {"prompt", *(_SETTING_OF_OPTION[name] for name in decoder.options)} if decoder else set()
        for name, value in asked.items():
            if value is not None and name not in known:
                raise SettingsError(f"{name}={value!r} is given, but {settings.model_name} takes none; leave it out.")
        if decoder and (settings.cutoff_layer or 0) > decoder.layers:
            raise SettingsError(
                f"cutoff_layers={settings.cutoff_layer} is more than the {decoder.layers} layers of "
                f"{settings.model_name}."
            )
        if settings.prompt or self._instruction(model):
            pairs = self._pairs(model)
            pairs.share(self._uncounted(model, pairs)).check(settings, self._limit(model, pairs))

    def _least_length(self, model: LoadedModel) -> int:
        # One token of the query and one of the passage. `max_length` doesn't count a decoder's prompt; see `_limit`.
        pairs = PairTokenizer(model.tokenizer, model.pair_layout(self.settings.prompt))
        return pairs.share().least - self._uncounted(model, pairs)

    async def _call_async(self, priority: Priority) -> Call[Pair, NDArray[np.float32]]:
        await self._ready()
        return self._call(priority)

    def _call(self, priority: Priority) -> Call[Pair, NDArray[np.float32]]:
        model = self._loaded()
        pairs = self._pairs(model)
        terms = dataclasses.replace(self._terms(priority), max_length=self._limit(model, pairs), item="pair")
        options = self._decoder_options(model, pairs) if model.facts.decoder else None
        share = pairs.share(self._uncounted(model, pairs))
        return scoring_call(terms, pairs, share, options, normalizes=self.settings.normalize)

    def _instruction(self, model: LoadedModel) -> str:
        """Returns the text before each query: the user's, else the one that sentence-transformers' `predict` adds."""
        # `predict` has no roles.
        return self._resolve(model, "symmetric", explicit=self.settings.query_instruction).prefix

    def _pairs(self, model: LoadedModel) -> PairTokenizer:
        layout = model.pair_layout(self.settings.prompt)
        return PairTokenizer(model.tokenizer, layout, self._instruction(model))

    def _limit(self, model: LoadedModel, pairs: PairTokenizer) -> int:
        """Returns the limit of all tokens of a pair, a decoder's prompt included."""
        return min(self._limit_of(model) + self._uncounted(model, pairs), model.facts.max_tokens)

    def _uncounted(self, model: LoadedModel, pairs: PairTokenizer) -> int:
        """Returns how many tokens `max_length` doesn't count. The authors of decoders don't count the prompt."""
        return len(pairs.layout.after) if model.facts.decoder else 0

    def _decoder_options(self, model: LoadedModel, pairs: PairTokenizer) -> ScoringOptions:
        settings, spec, options = self.settings, model.spec, model.facts.decoder.options if model.facts.decoder else ()
        trained_cutoff = spec.cutoff_layer if spec and "cutoff_layers" in options else None
        return ScoringOptions(
            prompt_tokens=len(pairs.layout.after),
            cutoff_layer=settings.cutoff_layer or trained_cutoff,
            compress_ratio=settings.compress_ratio or (spec.compress_ratio if spec else None),
            compress_layers=tuple(settings.compress_layers or (spec.compress_layers if spec else ())),
        )


_SETTING_OF_OPTION = {
    "cutoff_layers": "cutoff_layers",
    "compress_ratio": "compress_ratio",
    "compress_layer": "compress_layers",
}
"""The setting for each argument of a decoder's `forward`."""


def _with_query(query: str, passages: Iterable[str], method: str) -> list[tuple[str, str]]:
    asked = check_text(query, 0, "Query")
    return [(asked, passage) for passage in check_texts(passages, method)]
