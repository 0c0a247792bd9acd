"""Rerankers that are encoders with one output, as sentence-transformers loads them. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import CrossEncoder

from bge_integrations.backend.checkpoint.facts import require_room, score_facts
from bge_integrations.backend.engines.architecture import ARCHITECTURES, describe_encoder
from bge_integrations.backend.engines.interface import Engine, Rows
from bge_integrations.backend.engines.sentence_transformers import SentenceTransformersEngine
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import SCORE_DENSE, SCORE_OUT, Heads
from bge_integrations.backend.text.pairs import PairTokenizer, layout_of_encoder
from bge_integrations.backend.torch_models.base import Source, from_pretrained_kwargs
from bge_integrations.backend.torch_models.tokenizer_check import CallSettings, require_same_pairs
from bge_integrations.errors import UnsupportedModelError


class ScoreSource(Source):
    """A CrossEncoder."""

    original: CrossEncoder
    runnable = "plain BERT or XLM-RoBERTa classifier with one output"

    @property
    def transformer(self) -> torch.nn.Module:
        """See `Source.transformer`."""
        encoder: torch.nn.Module = _classifier_of(self.original).base_model
        return encoder

    @property
    def has_known_encoder(self) -> bool:
        """See `Source.has_known_encoder`."""
        return self.facts.encoder is not None and bool(self.heads)

    @property
    def rows(self) -> Rows:
        """See `Source.rows`."""
        return "cls"

    def own_engine(self) -> Engine:
        """See `Source.own_engine`; gives logits, without CrossEncoder's sigmoid."""
        return SentenceTransformersEngine(
            list(self.original),
            device=self.original.device,
            pad_id=self.facts.pad_id,
            rows="pooled",
            output="scores",
            token_types=self.facts.second_type == 1,
            config=self.transformer.config,
        )

    def _load(self, precision: str) -> None:
        name, folder = self.request.model_name, self.folder
        try:
            self.original = CrossEncoder(
                folder, device=self.request.device, **from_pretrained_kwargs(self.request, precision)
            )
        except Exception as error:  # loaders of four libraries raise many classes of errors for a damaged checkpoint
            raise self._unreadable(error) from error
        self.original.eval()
        self._require_all_weights(_classifier_of(self.original), needs_pooler=True)
        _require_plain_pairs(name, self.original)
        labels = self.original.num_labels
        if labels != 1:
            raise UnsupportedModelError(f"{name} is a classifier with {labels} classes; a reranker has one output.")
        module: Any = self.original[0]
        settings = CallSettings.of(module)
        self.tokenizer = settings.tokenizer(module)
        # Modules after the classifier change the score, and only sentence-transformers runs them.
        self.heads = _heads(_classifier_of(self.original)) if len(list(self.original)) == 1 else {}
        self.facts = self._facts(settings)
        pairs = PairTokenizer(self.tokenizer, layout_of_encoder(self.tokenizer))
        limit = self.facts.max_tokens
        require_room(name, limit, pairs.layout.tokens + 1)
        require_same_pairs(name, module, pairs.tokenize, limit, self.facts.second_type)

    def _facts(self, settings: CallSettings) -> ModelFacts:
        gives_types = "token_type_ids" in self.original.tokenizer.model_input_names
        second_type = max(self.tokenizer.sample_pair().types) if gives_types else 0
        return score_facts(
            self.checkpoint,
            self.spec,
            self._lookups(),
            max_length=settings.max_length,
            second_type=second_type,
            prompts=self.original.prompts,
            default_prompt_name=self.original.default_prompt_name,
            encoder=describe_encoder(self.transformer, reads_pairs=second_type == 1),
        )


def _require_plain_pairs(name: str, model: CrossEncoder) -> None:
    """Refuses a model that reads a pair as messages of a conversation.

    Raises:
        UnsupportedModelError: The model has a chat template.
    """
    transformer: Any = model[0]
    if "message" in getattr(transformer, "modality_config", {}):
        raise UnsupportedModelError(
            f"{name} has a chat template, with which sentence-transformers turns query and passage into messages. "
            "BgeReranker scores only plain pairs. Score it with sentence_transformers.CrossEncoder, or remove the "
            "template (chat_template) from a copy of its tokenizer if it was trained on plain pairs."
        )


def _classifier_of(model: CrossEncoder) -> Any:  # noqa: ANN401 - one of transformers' many classes
    transformer: Any = model[0]
    return transformer.auto_model


def _heads(classifier: torch.nn.Module) -> Heads:
    """Returns the weights after the encoder; {} for a class that the fast engines don't know."""
    config: Any = classifier.config
    known = ARCHITECTURES.get(config.model_type)
    if known is None or type(classifier).__name__ != known.classifier_class:
        return {}
    parts = {SCORE_DENSE: known.classifier_dense, SCORE_OUT: known.classifier_out}
    return {
        f"{name}.{kind}": classifier.get_parameter(f"{part}.{kind}").detach().float().cpu().numpy()
        for name, part in parts.items()
        for kind in ("weight", "bias")
    }
