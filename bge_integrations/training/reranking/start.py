"""Loads a reranker to train it, or makes one of an encoder. Imports torch."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from bge_integrations.backend.checkpoint.checks import locate_requested, vet
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.manifest import is_prepared
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.checkpoint.weights import ADAPTER_CONFIG, WeightRules
from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.text.pairs import PairTokenizer, layout_of_encoder
from bge_integrations.backend.torch_models import load_source
from bge_integrations.catalogue import ModelSpec
from bge_integrations.catalogue.instructions import resolve_instruction
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.settings import RerankerSettings
from bge_integrations.training.reranking.pairs import PairReader
from bge_integrations.training.trainer.starting import is_decoder, leave_out_attention_dropout, weight_kinds
from bge_integrations.training.trainer.work import require_device

__all__ = ["RerankerStart", "open_reranker"]


@dataclass(frozen=True, kw_only=True)
class RerankerStart:
    """A reranker that training starts from.

    Attributes:
        model: A CrossEncoder with float32 weights.
        spec: The catalogue's row of the model that was given; `None` for a model that is not a BGE model.
        has_new_head: Whether the model that was given was no reranker, so that its scores mean nothing yet.
        instruction: The text before a query.
        identity: Digest of the files that were given.
        max_length: Tokens that the model reads of a pair, at most.
        reader: Turns pairs into tensors, with the instruction.
        encoder: The shape of a BERT-like encoder whose head is known too; `None` for others.
        pooling: What the head reads.
        stored_in: Types of its weights in safetensors files, such as "F16".
    """

    model: CrossEncoder
    spec: ModelSpec | None
    has_new_head: bool
    instruction: str
    identity: str
    max_length: int
    reader: PairReader
    encoder: EncoderShape | None
    pooling: str = "cls"
    stored_in: frozenset[str] = frozenset()

    @property
    def classifier(self) -> Any:  # noqa: ANN401 - one of transformers' many classes
        """The sequence classifier of transformers inside."""
        transformer: Any = self.model[0]
        return transformer.auto_model


def open_reranker(settings: RerankerSettings, *, attention_dropout: bool = False, seed: int = 0) -> RerankerStart:
    """Loads a reranker. Any other encoder, such as an embedding model, gets a head with one output.

    The new head is that of rerankers of its architecture: a dense layer, tanh, and a projection to one number. In BERT,
    the dense layer is the pooler, which embedding models do not use; it is new too.

    Args:
        settings: Where its files are, and on which device it is trained.
        attention_dropout: Whether dropout acts inside attention. It slows attention on the CPU and takes much memory.
        seed: Of the weights of a new head.

    Raises:
        BgeError: As `BgeReranker`.
        UnsupportedModelError: It is a decoder, an adapter or a prepared folder.
    """
    require_device(settings.device)
    request = LoadRequest.from_settings(settings.replace(precision="float32", engine="sentence-transformers"), "scores")
    checkpoint = locate_requested(request)
    _refuse_others(checkpoint, settings.model_name)
    has_new_head = not checkpoint.scores_pairs
    spec = checkpoint.recognition.spec if checkpoint.recognition else None
    if has_new_head:
        with tempfile.TemporaryDirectory(prefix="bge-integrations-") as folder:
            _write_classifier(Path(folder), request, checkpoint, seed)
            source: Any = load_source(request, Checkpoint(Path(folder), settings.model_name), None, "float32")
    else:
        source = load_source(request, checkpoint, vet(checkpoint, request), "float32")
    model, facts = source.original, source.facts
    if len(list(model)) != 1:
        kinds = ", ".join(type(module).__name__ for module in model)
        raise UnsupportedModelError(
            f"{settings.model_name} is made of {kinds}; only a classifier without further modules can be trained."
        )
    instruction = resolve_instruction(
        "symmetric",  # as `BgeReranker` does
        explicit=settings.query_instruction,
        task=None,
        spec=None if has_new_head else spec,
        saved_prompts=facts.prompts,
        default_prompt_name=facts.default_prompt_name,
        recognized_by=facts.recognized_by,
    ).prefix
    if not attention_dropout:
        leave_out_attention_dropout(model)
    pairs = PairTokenizer(source.tokenizer, layout_of_encoder(source.tokenizer), instruction)
    return RerankerStart(
        model=model,
        spec=spec,
        has_new_head=has_new_head,
        instruction=instruction,
        identity=checkpoint.fingerprint,
        max_length=min(settings.max_length or facts.max_tokens, facts.max_tokens),
        reader=PairReader(pairs, second_type=facts.second_type, pad_id=facts.pad_id),
        encoder=facts.encoder if source.has_known_encoder else None,
        stored_in=weight_kinds(checkpoint.transformer_weights(WeightRules.of(request))),
    )


def _refuse_others(checkpoint: Checkpoint, name: str) -> None:
    if is_prepared(checkpoint.folder):
        raise UnsupportedModelError(
            f"{name} is a folder of `bge prepare`, which has no weights to train. Give the model that it was made from."
        )
    if checkpoint.base is not None or (checkpoint.folder / ADAPTER_CONFIG).is_file():
        raise UnsupportedModelError(
            f"{name} is an adapter. Merge it into its base model, and give the folder of the whole model."
        )
    if checkpoint.is_decoder or is_decoder(checkpoint.config):
        raise UnsupportedModelError(
            f"{name} is a decoder ({checkpoint.config.get('model_type')}), which train_reranker does not train. Start "
            "from an encoder, such as 'BAAI/bge-reranker-v2-m3', 'BAAI/bge-m3' or 'BAAI/bge-small-en-v1.5'."
        )


def _write_classifier(folder: Path, request: LoadRequest, checkpoint: Checkpoint, seed: int) -> None:
    """Writes an encoder with a new head, and its tokenizer, as transformers saves a classifier.

    Raises:
        UnsupportedModelError: transformers has no classifier for the encoder.
    """
    checkpoint.require_loadable(
        WeightRules.of(request), trust_remote_code=request.trust_remote_code, own_attention=False
    )
    vectors = dataclasses.replace(request, purpose="vectors")
    source: Any = load_source(vectors, checkpoint, None, "float32")
    encoder, config = source.transformer, copy.deepcopy(source.transformer.config)
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{request.model_name} is an encoder of the kind {config.model_type}, for which transformers has no "
            "classifier. Start from another one."
        )
    config.num_labels = 1
    tokenizer = source.original.tokenizer
    tokenizer.model_max_length = source.facts.positions or source.facts.max_tokens
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        classifier: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        # BERT's pooler is part of the head.
        weights = {name: value for name, value in encoder.state_dict().items() if not name.startswith("pooler.")}
        classifier.base_model.load_state_dict(weights, strict=False)
        classifier.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
