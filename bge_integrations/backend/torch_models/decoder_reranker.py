"""Rerankers that are decoders: the score is the logit of "Yes" after the prompt's question. Imports torch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bge_integrations.backend.checkpoint.facts import score_facts
from bge_integrations.backend.checkpoint.questions import trained_question
from bge_integrations.backend.engines.decoder import DecoderEngine
from bge_integrations.backend.engines.interface import Engine, Rows
from bge_integrations.backend.model.facts import DecoderFacts
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.backend.torch_models.base import Source, from_pretrained_kwargs
from bge_integrations.backend.torch_models.tokenizer_check import require_same_contents
from bge_integrations.errors import UnsupportedModelError

_ANSWER = "Yes"
_OPTIONS = ("cutoff_layers", "compress_ratio", "compress_layer")


class DecoderScoreSource(Source):
    """A causal language model."""

    original: Any
    runnable = "encoder"

    @property
    def transformer(self) -> torch.nn.Module:
        """See `Source.transformer`."""
        model: torch.nn.Module = self.original
        return model

    @property
    def has_known_encoder(self) -> bool:
        """See `Source.has_known_encoder`."""
        return False

    @property
    def rows(self) -> Rows:
        """See `Source.rows`."""
        return "pooled"

    def own_engine(self) -> Engine:
        """See `Source.own_engine`."""
        answer = self._answer()
        options = self.facts.decoder.options if self.facts.decoder else ()
        return DecoderEngine(self.original, pad_id=self.facts.pad_id, answer=answer, options=options)

    def _answer(self) -> int:
        """Returns the token id whose logit is the score: the first id of the answer, as in BGE's own code.

        Raises:
            UnsupportedModelError: The model is not a BGE model, and the answer is not a single token.
        """
        tokenizer = self.tokenizer
        ids = tokenizer.contents([_ANSWER])[0].tolist()
        if trained_question(self.spec) is None and (len(ids) != 1 or tokenizer.token(ids[0]).strip("Ġ▁") != _ANSWER):
            raise UnsupportedModelError(
                f"{self.request.model_name} has no token {_ANSWER!r}, whose logit would be the score "
                f"(its tokenizer writes {', '.join(map(tokenizer.token, ids))})."
            )
        return int(ids[0])

    def _load(self, precision: str) -> None:
        request, folder = self.request, self.folder
        kwargs = from_pretrained_kwargs(request, precision)
        groups = [kwargs.pop(name) for name in ("model_kwargs", "processor_kwargs", "config_kwargs")]
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs, **groups[1])
            self.original = AutoModelForCausalLM.from_pretrained(folder, **kwargs, **groups[0], **groups[2])
            self.original.eval().to(request.device)
        except Exception as error:  # loaders raise many classes of errors for a damaged checkpoint
            raise self._unreadable(error) from error
        self._require_all_weights(self.original)
        self.tokenizer = TextTokenizer.copy_of(tokenizer)
        self._answer()  # raises its error now, not later when an engine is made
        forward = inspect.signature(self.original.forward).parameters
        require_same_contents(request.model_name, tokenizer, self.tokenizer)
        self.facts = score_facts(
            self.checkpoint,
            self.spec,
            self._lookups(),
            max_length=int(tokenizer.model_max_length),
            second_type=0,
            prompts={},
            default_prompt_name=None,
            encoder=None,
            decoder=DecoderFacts(
                prompt=trained_question(self.spec),
                first_ids=() if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),),
                layers=self.original.config.num_hidden_layers,
                options=tuple(name for name in _OPTIONS if name in forward),
            ),
        )
