"""Models that give one vector per text, as sentence-transformers loads them. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from bge_integrations.backend.checkpoint.facts import require_room, vector_facts
from bge_integrations.backend.checkpoint.files import made_of_others
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.architecture import describe_encoder
from bge_integrations.backend.engines.interface import Engine, Rows
from bge_integrations.backend.engines.sentence_transformers import SentenceTransformersEngine
from bge_integrations.backend.model.description import rows_for_vectors
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.pooling import NAMES_OF_CATALOGUE, NAMES_OF_SETTING, TOKEN_POOLINGS
from bge_integrations.backend.torch_models.base import Source, from_pretrained_kwargs
from bge_integrations.backend.torch_models.text_ends import complete_text_ends
from bge_integrations.backend.torch_models.tokenizer_check import CallSettings, require_same_texts
from bge_integrations.errors import ModelLoadError, SettingsError


class VectorSource(Source):
    """A SentenceTransformer."""

    original: SentenceTransformer
    runnable = "plain BERT or XLM-RoBERTa encoder with cls, mean, max or last-token pooling"

    @property
    def transformer(self) -> torch.nn.Module:
        """See `Source.transformer`."""
        inside: torch.nn.Module = _first(self.original).auto_model
        return inside

    @property
    def has_known_encoder(self) -> bool:
        """See `Source.has_known_encoder`."""
        return self.facts.encoder is not None and self.facts.pooling is not None

    @property
    def rows(self) -> Rows:
        """See `Source.rows`."""
        return rows_for_vectors(self.facts)

    def own_engine(self) -> Engine:
        """See `Source.own_engine`; leaves out a final L2 normalisation, which the encoder computes."""
        modules = list(self.original)
        return self._engine_of(modules[:-1] if self.facts.normalizes else modules, rows="pooled")

    def _engine_of(self, modules: Sequence[torch.nn.Module], *, rows: Rows) -> SentenceTransformersEngine:
        return SentenceTransformersEngine(
            modules,
            device=self.original.device,
            pad_id=self.facts.pad_id,
            rows=rows,
            pad_to_multiple_of=(self.spec.pad_to_multiple_of if self.spec else None) or 1,
            config=self.transformer.config,
        )

    def _load(self, precision: str) -> None:
        self.original = self._loaded(precision)
        self._require_all_weights(self.transformer)
        self._require_fitting_modules()
        self._complete_text_ends()
        module = _first(self.original)
        settings = CallSettings.of(module)
        self.tokenizer = settings.tokenizer(module)
        self.facts = self._facts(settings)
        require_room(self.request.model_name, self.facts.max_tokens, self.tokenizer.special_tokens)
        require_same_texts(self.request.model_name, module, self.tokenizer, self.facts.max_tokens)

    def _complete_text_ends(self) -> None:
        poolings = [mode for module in self.original if isinstance(module, Pooling) for mode in _modes(module)]
        if "lasttoken" not in poolings:
            return
        recognition = self.checkpoint.recognition
        complete_text_ends(
            self.original.tokenizer,
            saved=self.checkpoint.tokenizer_config,
            given=self.request.transformers_kwargs.as_dicts()["processor_kwargs"],
            spec=recognition.spec if recognition and recognition.by == "name" else None,
        )

    def _loaded(self, precision: str) -> SentenceTransformer:
        request, checkpoint, spec = self.request, self.checkpoint, self.spec
        common = from_pretrained_kwargs(request, precision)
        folder = self.folder
        asked = NAMES_OF_SETTING[request.pooling] if request.pooling else None
        try:
            if checkpoint.modules is not None or (spec is None and asked is None):
                model = SentenceTransformer(folder, device=request.device, **common)
            else:
                transformer = Transformer.load(folder, **common)
                mode = asked or NAMES_OF_CATALOGUE[spec.pooling or "cls" if spec else "cls"]
                modules = [transformer, Pooling(transformer.get_embedding_dimension(), mode)]
                model = SentenceTransformer(modules=[*modules, Normalize()] if spec else modules, device=request.device)
        except Exception as error:  # loaders of four libraries raise many classes of errors for a damaged checkpoint
            raise self._unreadable(error) from error
        model.eval()
        if not isinstance(model[0], Transformer) or not any(isinstance(module, Pooling) for module in model):
            raise made_of_others(request.model_name, (type(module).__name__ for module in model))
        if asked is not None:
            _set_pooling(model, asked, request)
        return model

    def _require_fitting_modules(self) -> None:
        """Compares the input and output widths of the modules, which no library does before the first text.

        Raises:
            ModelLoadError: A module's input width differs from the output width of the module before it.
        """
        width = _first(self.original).get_embedding_dimension()
        for place, module in enumerate(self.original):
            takes = {Pooling: "embedding_dimension", Dense: "in_features"}.get(type(module))
            taken = getattr(module, takes) if takes else width
            if taken != width:
                modules = self.checkpoint.modules or ()
                file = self.checkpoint.folder / (modules[place]["path"] if place < len(modules) else "") / "config.json"
                raise ModelLoadError(
                    f"{file} is damaged: {takes} is {taken}, but the module before it gives {width} numbers; fetch the "
                    "model again, or correct the file."
                )
            width = module.get_embedding_dimension() if isinstance(module, (Pooling, Dense)) else width

    def _facts(self, settings: CallSettings) -> ModelFacts:
        model, modules = self.original, list(self.original)
        return vector_facts(
            self.checkpoint,
            self.spec,
            self._lookups(),
            max_length=settings.max_length,
            dimension=int(model.get_embedding_dimension() or 0),
            normalizes=isinstance(modules[-1], Normalize),
            pooling=_plain_pooling(modules),
            pools_without_prompt=any(isinstance(m, Pooling) and not m.include_prompt for m in modules),
            prompts=model.prompts,
            default_prompt_name=model.default_prompt_name,
            encoder=describe_encoder(self.transformer),
        )


def _first(model: SentenceTransformer) -> Transformer:
    transformer: Any = model[0]
    first: Transformer = transformer
    return first


def _set_pooling(model: SentenceTransformer, mode: str, request: LoadRequest) -> None:
    """Replaces the checkpoint's own pooling by the pooling that the user requested.

    Raises:
        SettingsError: The modules after the checkpoint's own pooling need that pooling.
    """
    poolings = {place: module for place, module in enumerate(model) if isinstance(module, Pooling)}
    place, own = next(iter(poolings.items()))
    if own.pooling_mode in (mode, (mode,), [mode]):
        return
    width = _first(model).get_embedding_dimension()
    if len(poolings) > 1 or own.get_embedding_dimension() != width:
        raise SettingsError(
            f"pooling={request.pooling!r} can't be honoured: the further modules of {request.model_name} need its own "
            f"pooling ({own.pooling_mode!r}, {own.get_embedding_dimension()} numbers); leave pooling=None."
        )
    model[place] = Pooling(width, mode, include_prompt=own.include_prompt)


def _plain_pooling(modules: list[torch.nn.Module]) -> str | None:
    """Returns the pooling of a model with only a transformer, one pooling and at most a normalisation, else `None`."""
    between = modules[1:-1] if isinstance(modules[-1], Normalize) else modules[1:]
    if len(between) != 1 or not isinstance(between[0], Pooling):
        return None
    modes = _modes(between[0])
    return modes[0] if len(modes) == 1 and modes[0] in TOKEN_POOLINGS else None


def _modes(pooling: Pooling) -> tuple[str, ...]:
    mode = pooling.pooling_mode
    return (mode,) if isinstance(mode, str) else tuple(mode)
