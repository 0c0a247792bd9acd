"""Refuses checkpoints whose JSON files name code, or another repository to fetch from, unless the user trusts them.

sentence-transformers and transformers import, call or fetch such code even without `trust_remote_code`. The keywords
that the user passes are not checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bge_integrations.backend.checkpoint.contents import SETTINGS_OF_TRANSFORMER
from bge_integrations.errors import UnsafeWeightsError

# Not flash_attention_*: if its package is not installed, transformers fetches a kernel from the hub.
_ATTENTION = ("eager", "sdpa", "flex_attention")
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_EXPERTS = ("eager", "grouped_mm", "batched_mm")
_ACTIVATION = re.compile(r"torch\.nn(\.modules(\.[a-z_]+)?)?\.[A-Z]\w*")
# Each of these imports one known package that the user has installed. Other methods fetch kernels.
_QUANTIZATIONS = ("bitsandbytes", "gptq", "awq", "compressed-tensors", "torchao", "hqq", "quanto", "bitnet")
_FETCHING_MODEL_TYPES = ("timm_backbone", "timm_wrapper")

_MODULES = (
    *("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "LayerNorm", "Router", "Asym", "StaticEmbedding"),
    *("WeightedLayerPooling", "WordEmbeddings", "WordWeights", "BoW", "CNN", "LSTM", "CLIPModel", "LogitScore"),
    *("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "CSRSparsity", "SparseStaticEmbedding", "IDF"),
    *("MultiVectorMask", "HierarchicalTokenPooling", "TokenPooling"),
)
_TOKENIZERS = ("WhitespaceTokenizer", "PhraseTokenizer", "TransformersTokenizerWrapper")

_SETTINGS = (
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"),
    *("processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion"),
)
_MODEL_KEYWORDS = (
    *("attn_implementation", "dtype", "torch_dtype", "add_pooling_layer", "low_cpu_mem_usage", "use_safetensors"),
)
_PROCESSOR_KEYWORDS = (
    *("model_max_length", "padding_side", "truncation_side", "use_fast", "do_lower_case", "add_prefix_space"),
    *("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "min_pixels", "max_pixels"),
    *("split_special_tokens", "fix_mistral_regex", "strip_accents", "tokenize_chinese_chars"),
)
_CONFIG_KEYWORDS = (
    *("attn_implementation", "dtype", "torch_dtype", "num_labels", "use_cache", "is_decoder", "is_causal"),
    *("use_bidirectional_attention", "max_position_embeddings", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "attention_dropout", "classifier_dropout", "output_hidden_states"),
    *("reference_compile", "rope_scaling", "rope_theta", "sliding_window", "unpad_inputs"),
    *("use_memory_efficient_attention", "id2label", "label2id", "problem_type", "layer_norm_eps"),
)
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("model_args", "model_kwargs"), _MODEL_KEYWORDS),
    **dict.fromkeys(("tokenizer_args", "processor_kwargs"), _PROCESSOR_KEYWORDS),
    **dict.fromkeys(("config_args", "config_kwargs"), _CONFIG_KEYWORDS),
}
"""Keywords that a file may pass to transformers' `from_pretrained`. None of them names a source or code to run."""
_METHOD = re.compile(r"forward|get_[a-z_]+_features")

_ADAPTERS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "LN_TUNING", "FOURIERFT", "HRA")
_REMEDY = "Read the file; if you trust its author, pass trust_remote_code=True"

Found = Iterator[tuple[str, Any, str]]
"""Refused keys, each with its value and the reason."""


def refuse_named_code(name: str, files: Iterable[tuple[Path, Any]], *, own_attention: bool) -> None:
    """Refuses a checkpoint whose files name code outside of the libraries, or a repository of such code.

    Args:
        name: The model's name as the user wrote it.
        files: Paths and contents of the checkpoint's JSON files.
        own_attention: Whether the user names the attention, which overrides the attention in the files. A repository
            of kernels is refused in any case.

    Raises:
        UnsafeWeightsError: A file names code. The message has the file, the key and its value.
    """
    for path, content in files:
        rules = [_named_anywhere(content, own_attention=own_attention)]
        rules += [rule(content) for file, rule in _RULES.items() if file == path.name]
        for rule in rules:
            for key, value, why in rule:
                raise UnsafeWeightsError(f"{name} is refused: {path} has {key} = {value!r}, {why}. {_REMEDY}.")


def _named_anywhere(content: object, *, own_attention: bool, where: str = "") -> Found:
    """Finds refused keys at any depth, since the configuration of a composite model contains others."""
    members = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in members:
        place = f"{where}.{key}" if where else f"{key}"
        if key in _ATTENTION_KEYS:
            yield from _refused_attention(place, value, own_attention=own_attention)
        elif key == "auto_map" and where:
            yield place, value, "which names code"
        elif key in _REFUSED:
            is_refused, why = _REFUSED[str(key)]
            if is_refused(value):
                yield place, value, why
        yield from _named_anywhere(value, own_attention=own_attention, where=place)


def _refused_attention(where: str, value: object, *, own_attention: bool) -> Found:
    """Finds kernels. The value is one text, or an object with a text for each part of the model."""
    if isinstance(value, dict):
        for part, inner in value.items():
            yield from _refused_attention(f"{where}.{part}", inner, own_attention=own_attention)
    elif not _are(value, _ATTENTION):
        if not isinstance(value, str) or "/" in value:
            yield where, value, "which is fetched from the hub and run in place of the model's attention"
        elif not own_attention:
            yield (
                where,
                value,
                (
                    "which may be fetched from the hub and run (eager, sdpa and flex_attention never are); to name "
                    "the attention yourself pass transformers_kwargs=TransformersKwargs.of("
                    'model={"attn_implementation": "sdpa"})'
                ),
            )


def _are(value: object, allowed: tuple[str, ...]) -> bool:
    return value is None or value in allowed


def _is_foreign_activation(value: object) -> bool:
    return isinstance(value, str) and "." in value and not _ACTIVATION.fullmatch(value)


_REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
        (lambda value: not _are(value, _EXPERTS), "which is fetched from the hub and run"),
    ),
    **dict.fromkeys(
        ("allow_all_kernels", "use_kernels", "kernel_config"),
        (bool, "which makes transformers fetch kernels from the hub and run them"),
    ),
    **dict.fromkeys(
        ("activation_fn", "sbert_ce_default_activation_function", "activation_function"),
        (_is_foreign_activation, "which would be imported and called, and is not an activation of torch.nn.modules"),
    ),
    **dict.fromkeys(
        ("configuration_files", "fast_tokenizer_files"),
        (bool, "which names other files to read instead of those that are checked"),
    ),
    "quant_method": (
        lambda value: not _are(value, _QUANTIZATIONS),
        "which may fetch and run code from elsewhere",
    ),
    "model_type": (lambda value: value in _FETCHING_MODEL_TYPES, "which fetches models from elsewhere"),
}
"""Refused values by key at any depth, each with the reason."""


def _in_modules(content: list[dict[str, Any]]) -> Found:
    for index, module in enumerate(content):
        yield from _refused_class(f"[{index}].type", module["type"], _MODULES)


def _in_router(content: dict[str, Any]) -> Found:
    for part, dotted in content.get("types", {}).items():
        yield from _refused_class(f"types.{part}", dotted, _MODULES)


def _in_word_embeddings(content: dict[str, Any]) -> Found:
    yield from _refused_class("tokenizer_class", content["tokenizer_class"], _TOKENIZERS)


def _refused_class(where: str, dotted: object, known: tuple[str, ...]) -> Found:
    package, _, name = str(dotted).rpartition(".")
    if name not in known or not re.fullmatch(r"sentence_transformers(\.[a-z_]+)*", package):
        yield where, dotted, "which would be imported, and is not a known module of sentence-transformers"


def _in_transformer_settings(content: dict[str, Any]) -> Found:
    for key, value in content.items():
        if key in _KEYWORDS:
            for keyword, inner in value.items():
                if keyword not in _KEYWORDS[key]:
                    yield f"{key}.{keyword}", inner, "which is passed to transformers, and is not known to be safe"
        elif key == "modality_config":
            for kind, settings in value.items():
                method = settings.get("method", "forward")
                if not isinstance(method, str) or not _METHOD.fullmatch(method):
                    yield f"{key}.{kind}.method", method, "which would be called, and computes no output"
        elif key not in _SETTINGS and (key, value) != ("tokenizer_name_or_path", None):
            yield key, value, "which is passed to transformers, and is not known to be safe"


def _in_adapter(content: dict[str, Any]) -> Found:
    kind = content.get("peft_type", "LORA")
    if kind not in _ADAPTERS:
        yield "peft_type", kind, "which may load further models, and is not a known kind of adapter"
    if content.get("megatron_config"):
        yield "megatron_config", content["megatron_config"], "which makes peft import the module in megatron_core"
    mapping = content.get("auto_mapping") or {}
    library = mapping.get("parent_library", "transformers")
    if str(library).split(".")[0] != "transformers":
        yield "auto_mapping.parent_library", library, "which would be imported, and is not part of transformers"


_RULES: Mapping[str, Callable[[Any], Found]] = {
    "modules.json": _in_modules,
    "router_config.json": _in_router,
    "config.json": _in_router,
    "wordembedding_config.json": _in_word_embeddings,
    "adapter_config.json": _in_adapter,
    **dict.fromkeys(SETTINGS_OF_TRANSFORMER, _in_transformer_settings),
}
