"""Describes a model from its files alone: no library loads it, and each weight is read only when it is used.

This works for plain BERT and XLM-RoBERTa encoders and rerankers with safetensors weights. Other models are refused with
the reason: modules that only sentence-transformers runs, pickled weights, custom code, other architectures. A
description equals what sentence-transformers and transformers load from the same files. If that is not certain, the
model is refused too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bge_integrations.backend.checkpoint.contents import SETTINGS_OF_TRANSFORMER
from bge_integrations.backend.checkpoint.facts import Lookups, require_room, score_facts, vector_facts
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.plainness import NotPlainError, read_object
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.checkpoint.tensors import StoredTensor, StoredWeights, stored_tensors
from bge_integrations.backend.checkpoint.tokenizer_files import SavedTokenizer, read_tokenizer
from bge_integrations.backend.checkpoint.weights import ADAPTER_CONFIG, WeightRules
from bge_integrations.backend.engines.architecture import (
    ARCHITECTURES,
    WORDS,
    Architecture,
    EncoderShape,
    encoder_shape,
    weight_shapes,
)
from bge_integrations.backend.model.description import Description, rows_for_vectors
from bge_integrations.backend.model.heads import SCORE_DENSE, SCORE_OUT
from bge_integrations.backend.model.pooling import NAMES_OF_CATALOGUE, NAMES_OF_SETTING, TOKEN_POOLINGS
from bge_integrations.backend.text.pairs import layout_of_encoder
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue import ModelSpec
from bge_integrations.settings import TransformersKwargs

# transformers has defaults for these keys, which differ between architectures and versions.
_NEEDED_KEYS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id"),
)
_SPECIAL_KEYS = ("auto_map", "quantization_config", "pruned_heads", "is_encoder_decoder", "processor_class")

# The names that sentence-transformers wrote before version 5, and those that it writes since.
_TRANSFORMER = (
    "sentence_transformers.models.Transformer",
    "sentence_transformers.base.modules.transformer.Transformer",
)
_POOLING = (
    "sentence_transformers.models.Pooling",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
)
_NORMALIZE = (
    *("sentence_transformers.models.Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
    "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
)
_NORMALIZES_VECTORS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
_KEYS_OF_POOLING = ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt")
_OUTPUT_OF_TASK = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
}
"""Names of the output in transformers and in sentence-transformers, by sentence-transformers' task."""

# transformers renames these when it loads weights that were converted from TensorFlow.
_FORMER_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class TransformerSettings:
    """The settings of sentence-transformers for the transformer.

    Attributes:
        max_length: Tokens per text; `None` if the files don't say.
        lowercases: Whether every text is lowercased before it is tokenized.
    """

    max_length: int | None = None
    lowercases: bool = False


def describe(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> Description:
    """Describes a model.

    Args:
        request: The load request.
        checkpoint: The model's files, already checked by `vet`.
        spec: The catalogue's row; `None` for a model that is not a BGE model.

    Raises:
        NotPlainError: Only sentence-transformers can load the model.
        UnsupportedModelError: The model's token limit leaves no room for a text.
    """
    if request.purpose == "m3":
        raise NotPlainError("the two further heads of bge-m3 are pickled")
    if request.transformers_kwargs != TransformersKwargs():
        raise NotPlainError("transformers_kwargs are for transformers")
    architecture = _architecture(checkpoint)
    describe_purpose = _scorer if request.purpose == "scores" else _embedder
    return describe_purpose(request, checkpoint, spec, architecture)


def _architecture(checkpoint: Checkpoint) -> Architecture:
    config = checkpoint.config
    known = ARCHITECTURES.get(str(config.get("model_type")))
    if known is None:
        raise NotPlainError(f"its architecture is {config.get('model_type')!r}")
    if checkpoint.base or (checkpoint.transformer_folder / ADAPTER_CONFIG).exists():
        raise NotPlainError("it is an adapter")
    if checkpoint.is_decoder:
        raise NotPlainError("it is a decoder")
    for key in _NEEDED_KEYS:
        if config.get(key) is None:
            raise NotPlainError(f"its config.json has no {key}")
    for key in _SPECIAL_KEYS:
        if config.get(key):
            raise NotPlainError(f"its config.json has {key}")
    return known


def _shape(checkpoint: Checkpoint, *, reads_pairs: bool = False) -> EncoderShape:
    config = checkpoint.config
    shape = encoder_shape(config, reads_pairs=reads_pairs)
    if shape is None or shape.hidden_size % shape.heads or shape.pad_id >= config["vocab_size"]:
        raise NotPlainError("its config.json describes no plain encoder")
    return shape


def _embedder(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, known: Architecture) -> Description:
    shape = _shape(checkpoint)
    asked = NAMES_OF_SETTING[request.pooling] if request.pooling else None
    settings = TransformerSettings()
    prompts: dict[str, str | None] = {}
    default = None
    if checkpoint.modules is not None:
        pooling, includes_prompt, normalizes = _modules(checkpoint, shape)
        prompts, default = saved_prompts(checkpoint.folder, "SentenceTransformer")
    else:
        recorded = NAMES_OF_CATALOGUE[spec.pooling or "cls"] if spec else "mean"
        pooling, includes_prompt, normalizes = recorded, True, spec is not None
    if checkpoint.modules is not None or spec is not None or asked is not None:
        settings = transformer_settings(checkpoint.transformer_folder, "feature-extraction")
    pooling = asked or pooling
    if pooling not in TOKEN_POOLINGS or pooling == "lasttoken":
        raise NotPlainError(f"it has {pooling} pooling")
    saved = saved_tokenizer(checkpoint, settings)
    facts = vector_facts(
        checkpoint,
        spec,
        _lookups(checkpoint, shape, saved.tokenizer),
        max_length=_max_length(checkpoint, settings, saved),
        dimension=shape.hidden_size,
        normalizes=normalizes,
        pooling=pooling,
        pools_without_prompt=not includes_prompt,
        prompts={"query": None, "document": None, **prompts},
        default_prompt_name=default,
        encoder=shape,
    )
    require_room(request.model_name, facts.max_tokens, saved.tokenizer.special_tokens)
    tensors = _tensors(request, checkpoint)
    prefixes = [prefix for prefix in ("", known.prefix) if prefix + WORDS in tensors]
    if len(prefixes) > 1:
        raise NotPlainError("its files contain the weights twice")
    weights = _found(tensors, _shapes(checkpoint, shape), prefixes[0] if prefixes else "")
    return Description(
        facts=facts,
        shape=shape,
        tokenizer=saved.tokenizer,
        rows=rows_for_vectors(facts),
        heads={},
        weights=StoredWeights(weights),
    )


def _scorer(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, known: Architecture) -> Description:
    config, settings = checkpoint.config, TransformerSettings()
    prompts: dict[str, str | None] = {}
    default = None
    labels = config.get("id2label")
    if config.get("architectures") != [known.classifier_class]:
        raise NotPlainError(f"its config.json does not say that it is a {known.classifier_class}")
    if not isinstance(labels, dict) or len(labels) != 1 or config.get("num_labels", 1) != 1:
        raise NotPlainError("its config.json does not name the one label of a reranker (id2label)")
    if checkpoint.modules is not None:
        _require_types(checkpoint, [_TRANSFORMER])
        prompts, default = saved_prompts(checkpoint.folder, "CrossEncoder")
        settings = transformer_settings(checkpoint.transformer_folder, "sequence-classification")
    saved = saved_tokenizer(checkpoint, settings)
    second_type = max(saved.tokenizer.sample_pair().types) if saved.gives_types else 0
    if second_type not in (0, 1):
        raise NotPlainError(f"its tokenizer gives the type {second_type}")
    shape = _shape(checkpoint, reads_pairs=second_type == 1)
    facts = score_facts(
        checkpoint,
        spec,
        _lookups(checkpoint, shape, saved.tokenizer),
        max_length=_max_length(checkpoint, settings, saved),
        second_type=second_type,
        prompts=prompts,
        default_prompt_name=default,
        encoder=shape,
    )
    require_room(request.model_name, facts.max_tokens, layout_of_encoder(saved.tokenizer).tokens + 1)
    tensors = _tensors(request, checkpoint)
    weights = _found(tensors, _shapes(checkpoint, shape), known.prefix)
    width = shape.hidden_size
    parts = {SCORE_DENSE: (known.classifier_dense, width), SCORE_OUT: (known.classifier_out, 1)}
    wanted = {
        f"{part}.{kind}": (outputs, width) if kind == "weight" else (outputs,)
        for part, outputs in parts.values()
        for kind in ("weight", "bias")
    }
    stored = _found(tensors, wanted, "")
    heads = {
        f"{name}.{kind}": np.array(stored[f"{part}.{kind}"].read())
        for name, (part, _) in parts.items()
        for kind in ("weight", "bias")
    }
    return Description(
        facts=facts,
        shape=shape,
        tokenizer=saved.tokenizer,
        rows="cls",
        heads=heads,
        weights=StoredWeights(weights),
    )


def _modules(checkpoint: Checkpoint, shape: EncoderShape) -> tuple[str, bool, bool]:
    """Returns the pooling, whether it includes an instruction's tokens, and whether vectors are normalised after it."""
    listed = checkpoint.modules or []
    normalizes = len(listed) == 3
    _require_types(checkpoint, [_TRANSFORMER, _POOLING, _NORMALIZE][: max(2, len(listed))])
    folder = checkpoint.folder / listed[1]["path"]
    pooling = _read(folder / "config.json")
    unknown = [key for key in pooling if key not in _KEYS_OF_POOLING and not key.startswith("pooling_mode_")]
    widths = {pooling[key] for key in _KEYS_OF_POOLING[:2] if key in pooling}
    modes = checkpoint.pooling_modes or ()
    if unknown or widths != {shape.hidden_size} or len(modes) != 1:
        raise NotPlainError(f"{folder.name}/config.json is not a plain pooling of {shape.hidden_size} numbers")
    if normalizes:
        said = _read(checkpoint.folder / listed[2]["path"] / "config.json") if listed[2]["path"] else {}
        if {**_NORMALIZES_VECTORS, **said} != _NORMALIZES_VECTORS:
            raise NotPlainError("its Normalize module does not normalise the vectors of texts")
    return modes[0], pooling.get("include_prompt", True) is not False, normalizes


def _require_types(checkpoint: Checkpoint, expected: list[tuple[str, ...]]) -> None:
    listed = checkpoint.modules or []
    plain = len(listed) == len(expected) and all(
        module["type"] in types and not module.get("kwargs") for module, types in zip(listed, expected, strict=True)
    )
    if not plain:
        kinds = ", ".join(str(module["type"]).rpartition(".")[2] for module in listed)
        raise NotPlainError(f"its modules are {kinds}")


def saved_prompts(folder: Path, kind: str) -> tuple[dict[str, str | None], str | None]:
    """Returns the saved prompts of a class of sentence-transformers, and the name of the default prompt.

    Raises:
        NotPlainError: The model was saved as another class, or has settings that only sentence-transformers can apply.
    """
    said = _read(folder / "config_sentence_transformers.json")
    if said.get("model_type", "SentenceTransformer") != kind:
        raise NotPlainError(f"it was saved as a {said.get('model_type', 'SentenceTransformer')}")
    for key in ("requirements", "truncate_dim", "keep_in_fp32_modules"):
        if said.get(key):
            raise NotPlainError(f"its config_sentence_transformers.json has {key}")
    prompts, default = said.get("prompts", {}), said.get("default_prompt_name")
    if default is not None and default not in {"query", "document", *prompts}:
        raise NotPlainError(f"its default prompt {default!r} is not among its prompts")
    return prompts, default


def transformer_settings(folder: Path, task: str) -> TransformerSettings:
    """Returns the settings of sentence-transformers for the transformer.

    Args:
        folder: Folder of the transformer.
        task: The transformer's task, a key of `_OUTPUT_OF_TASK`.

    Raises:
        NotPlainError: Only sentence-transformers can apply them.
    """
    said = next((found for name in SETTINGS_OF_TRANSFORMER if (found := _read(folder / name))), {})
    output, name = _OUTPUT_OF_TASK[task]
    plain = {
        "transformer_task": task,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": name,
    }
    for key, value in said.items():
        if key not in ("max_seq_length", "do_lower_case") and (key not in plain or value != plain[key]):
            raise NotPlainError(f"its settings for sentence-transformers have {key} = {value!r}")
    if task != "feature-extraction" and said.get("transformer_task") != task:
        raise NotPlainError("its settings for sentence-transformers don't say that it scores pairs")
    return TransformerSettings(said.get("max_seq_length"), bool(said.get("do_lower_case", False)))


def saved_tokenizer(checkpoint: Checkpoint, settings: TransformerSettings) -> SavedTokenizer:
    """Makes a checkpoint's tokenizer.

    Raises:
        NotPlainError: transformers may make another tokenizer from these files.
    """
    config = checkpoint.config
    if config.get("tokenizer_class"):
        raise NotPlainError("its config.json has tokenizer_class")
    return read_tokenizer(checkpoint.transformer_folder, str(config.get("model_type")), lowercases=settings.lowercases)


def _max_length(checkpoint: Checkpoint, settings: TransformerSettings, saved: SavedTokenizer) -> int:
    """Returns sentence-transformers' limit: its own setting, else the smaller of the tokenizer's and the positions'."""
    if settings.max_length is not None:
        return settings.max_length
    positions: int = checkpoint.config["max_position_embeddings"]
    return positions if saved.model_max_length is None else min(saved.model_max_length, positions)


def _lookups(checkpoint: Checkpoint, shape: EncoderShape, tokenizer: TextTokenizer) -> Lookups:
    return Lookups.of(
        tokenizer,
        positions=shape.longest_text,
        word_rows=checkpoint.config["vocab_size"],
        type_rows=checkpoint.config["type_vocab_size"],
    )


def _tensors(request: LoadRequest, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Returns all tensors of the weight files by their current names."""
    files = checkpoint.transformer_weights(WeightRules.of(request))
    pickled = [file.name for file in files if file.suffix != ".safetensors"]
    if pickled or not files:
        raise NotPlainError(f"its weights are in {', '.join(pickled) or 'no file that is read here'}")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored_tensors(files).items():
        now = _present_name(name)
        if now in tensors:
            raise NotPlainError(f"its weights have two tensors for {now}")
        tensors[now] = tensor
    return tensors


def _present_name(name: str) -> str:
    for former, present in _FORMER_NAMES.items():
        if name.endswith(former):
            return name.removesuffix(former) + present
    return name


def _shapes(checkpoint: Checkpoint, shape: EncoderShape) -> dict[str, tuple[int, ...]]:
    config = checkpoint.config
    return weight_shapes(shape, words=config["vocab_size"], types=config["type_vocab_size"])


def _found(
    tensors: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]], prefix: str
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, shape in wanted.items():
        tensor = tensors.get(prefix + name)
        if tensor is None:
            raise NotPlainError(f"its weights have no {prefix}{name}")
        if tensor.shape != shape or not tensor.is_floating_point:
            raise NotPlainError(
                f"{prefix}{name} in its weights has the shape {list(tensor.shape)} and the type {tensor.kind}; "
                f"config.json says {list(shape)}"
            )
        found[name] = tensor
    return found


def _read(file: Path) -> dict[str, Any]:
    return read_object(file) or {}
