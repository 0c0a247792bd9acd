"""BgeReranker: a query and passages in, scores out."""

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


class BgeReranker(ModelHandle[RerankerSettings]):
    """Scores how well passages answer a query, with a BGE reranker or any other classifier with one output.

    Reads query and passage together, so it is slower than comparing vectors, and better: let vectors find a hundred
    candidates, and this order them. Rerankers with equal loading settings share one model in memory. Safe to use from
    several threads. Pickles and copies carry settings, never weights.

    Example:
        ```python
        reranker = BgeReranker("BAAI/bge-reranker-v2-m3")
        best = passages[int(reranker.score("what is a panda?", passages).argmax())]
        ```
    """

    _purpose = "scores"
    _settings_kind = RerankerSettings

    def __init__(self, model_name: str | os.PathLike[str], **options: Unpack[RerankerOptions]) -> None:
        """Loads the model, or joins the rerankers that already hold it.

        Args:
            model_name: Hub id (`"BAAI/bge-reranker-v2-m3"`), local folder, or folder made by `bge prepare`.
            **options: The fields of `bge_integrations.settings.RerankerSettings`, which describes them. `max_length` is
                of query and passage together, without a decoder's prompt. `query_instruction=None` is the default
                prompt that was saved with a CrossEncoder; BGE's own have none.

        Raises:
            TypeError: An option that there isn't.
            SettingsError: A setting that can't be honoured, named with its value and the choices.
            UnsupportedModelError: The model is no reranker.
            ModelLoadError: The checkpoint can't be found, fetched or read, or would run code.
            MissingExtraError: The engine named is not installed, or int8 needs the quantiser, which is not.
        """
        self._start(RerankerSettings(model_name=cast("str", model_name), **options))
        self._loaded()

    def score(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """Scores passages for one query. Goes before pairs that `score_pairs` has queued.

        The query is kept whole, and a passage that doesn't fit beside it is cut.

        Args:
            query: The query.
            passages: The passages.

        Returns:
            float32, shape [passages], in the order given; the higher, the better.

        Raises:
            InputTypeError: A query or passage that is no `str`, or a bare `str` where the list of passages belongs.
            InputValueError: A text that UTF-8 can't write.
            TruncationError: A pair over the limit, under `on_truncation="error"`.
            NonFiniteOutputError: The model gave NaN or infinity.
            EngineFailedError: The engine fails on a pair even alone.
            ModelClosedError: After `close()`.
        """
        return self._call("interactive").run(_with_query(query, passages, "score"), "score")

    def score_pairs(self, pairs: Iterable[tuple[str, str]]) -> NDArray[np.float32]:
        """Scores pairs of query and passage.

        Args:
            pairs: The pairs. An iterator is read in slices, so that its texts need not all be in memory.

        Returns:
            float32, shape [pairs], in the order given; the higher, the better.

        Raises:
            BgeError: As `score`.
        """
        return self._call("bulk").run(pairs, "score_pairs")

    async def ascore(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """As `score`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        check = partial(_with_query, query, passages, "ascore")
        pairs = await OnLoop([query], passages).run(check)
        return await (await self._call_async("interactive")).run_async(pairs, "ascore")

    async def ascore_pairs(self, pairs: Iterable[tuple[str, str]]) -> NDArray[np.float32]:
        """As `score_pairs`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        return await (await self._call_async("bulk")).run_async(pairs, "ascore_pairs")

    @property
    def client(self) -> Any:  # noqa: ANN401 - a library's class
        """sentence-transformers' CrossEncoder underneath, or transformers' decoder; it knows and takes no settings."""
        return self._loaded().original

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
        # A token of the query and one of the passage. `max_length` doesn't count a decoder's prompt; see `_limit`.
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
        """Returns the text before each query: the user's, else what sentence-transformers' `predict` puts there."""
        # `predict` knows no roles.
        return self._resolve(model, "symmetric", explicit=self.settings.query_instruction).prefix

    def _pairs(self, model: LoadedModel) -> PairTokenizer:
        layout = model.pair_layout(self.settings.prompt)
        return PairTokenizer(model.tokenizer, layout, self._instruction(model))

    def _limit(self, model: LoadedModel, pairs: PairTokenizer) -> int:
        """Tokens per pair, all counted."""
        return min(self._limit_of(model) + self._uncounted(model, pairs), model.facts.max_tokens)

    def _uncounted(self, model: LoadedModel, pairs: PairTokenizer) -> int:
        """Tokens that `max_length` doesn't count: decoders' authors don't count the prompt."""
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
"""Settings by what a decoder's forward calls them."""


def _with_query(query: str, passages: Iterable[str], method: str) -> list[tuple[str, str]]:
    asked = check_text(query, 0, "Query")
    return [(asked, passage) for passage in check_texts(passages, method)]
