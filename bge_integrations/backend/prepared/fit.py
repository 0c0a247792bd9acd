"""Checks that the parts of a prepared model fit each other: its facts, graph, tokenizer and heads.

Digests show that files are unchanged, but not that they belong together. The check runs when a folder is opened.
Otherwise, parts that don't fit would make a worker fail or give wrong vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import Rows
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import COLBERT, SCORE_DENSE, SCORE_OUT, SPARSE, Heads
from bge_integrations.backend.model.pooling import TOKEN_POOLINGS
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.settings import Purpose

if TYPE_CHECKING:
    from bge_integrations.backend.engines.openvino.graph import EncoderGraph
    from bge_integrations.backend.engines.openvino.library import ov
    from bge_integrations.backend.engines.openvino.words import WordTable

_INPUTS = {"words", "positions", "mask"}


def misfit_of_facts(purpose: Purpose, rows: Rows, facts: ModelFacts) -> str | None:
    """Returns the first fact that can't be true for an encoder that OpenVINO runs; `None` if there is no such fact."""
    shape = facts.encoder
    if shape is None or facts.decoder is not None:
        return "its facts describe no encoder"
    sizes = (shape.layers, shape.hidden_size, shape.feed_forward_size, shape.heads, shape.positions)
    if min(sizes) < 1 or shape.hidden_size % shape.heads or shape.token_types not in (1, 2) or shape.norm_eps < 0:
        return f"there is no encoder of the shape {shape}"
    dimension = 1 if purpose == "scores" else shape.hidden_size
    if facts.dimension != dimension:
        return f"facts.dimension is {facts.dimension}, but its graph gives {dimension} numbers"
    if facts.pooling not in TOKEN_POOLINGS:
        return f"facts.pooling is {facts.pooling!r}, not one of {', '.join(TOKEN_POOLINGS)}"
    fitting = {"scores": ("cls",), "m3": ("tokens",), "vectors": ("tokens", "cls")}[purpose]
    if rows not in fitting or (rows == "cls" and facts.pooling != "cls"):
        return f"rows is {rows!r}, which does not fit {purpose} with {facts.pooling} pooling"
    if not 1 <= facts.max_tokens <= shape.positions:
        return f"facts.max_tokens is {facts.max_tokens}, but the encoder has {shape.positions} positions"
    if facts.positions is not None and not 1 <= facts.positions <= shape.positions:
        return f"facts.positions is {facts.positions}, but the encoder has {shape.positions} positions"
    if facts.default_prompt_name is not None and facts.default_prompt_name not in facts.prompts:
        return f"facts.default_prompt_name is {facts.default_prompt_name!r}, which is not in facts.prompts"
    return None


def misfit_of_parts(
    purpose: Purpose, rows: Rows, facts: ModelFacts, tokenizer: TextTokenizer, heads: Heads, graph: EncoderGraph
) -> str | None:
    """Returns the first file that doesn't fit the facts, and why; `None` if all fit.

    Args:
        purpose: Purpose that the model was prepared for.
        rows: Kind of rows that the graph gives for a text.
        facts: Facts of the model, already checked by `misfit_of_facts`.
        tokenizer: The model's tokenizer.
        heads: Weights on top of the encoder.
        graph: Graph of the encoder, and its words.
    """
    shape = facts.encoder
    if shape is None:
        raise AssertionError("misfit_of_facts refuses facts without an encoder")
    return (
        _misfit_of_graph(graph.model, rows, shape)
        or _misfit_of_words(graph.words, shape)
        or _misfit_of_tokenizer(tokenizer, facts, words=len(graph.words))
        or _misfit_of_heads(heads, purpose, shape.hidden_size)
    )


def _misfit_of_graph(graph: ov.Model, rows: Rows, shape: EncoderShape) -> str | None:
    names = {name for port in graph.inputs for name in port.get_names()}
    if names != _INPUTS or len(graph.outputs) != 1:
        taken = ", ".join(sorted(names))
        return f"model.xml takes {taken} and gives {len(graph.outputs)} outputs, so it is not an encoder"
    output = graph.outputs[0].get_partial_shape()
    given = [part.get_length() if part.is_static else None for part in output] if output.rank.is_static else []
    expected = [None, shape.hidden_size] if rows == "cls" else [None, None, shape.hidden_size]
    if given != expected:
        return f"model.xml gives {output}, but facts.encoder.hidden_size is {shape.hidden_size} and rows is {rows!r}"
    positions, types = shape.positions, shape.token_types
    if _position_table(graph) != (positions * types, shape.hidden_size):
        return f"model.xml has other positions than facts.encoder, which has {positions} for each of {types} types"
    return None


def _misfit_of_words(words: WordTable, shape: EncoderShape) -> str | None:
    if words.width != shape.hidden_size:
        return f"facts.encoder.hidden_size is {shape.hidden_size}, but words.npy has rows of {words.width} numbers"
    if not 0 <= shape.pad_id < len(words):
        return f"facts.encoder.pad_id is {shape.pad_id}, but words.npy has {len(words)} tokens"
    return None


def _position_table(graph: ov.Model) -> tuple[int, int]:
    """Returns the shape of the table of positions; zeros if there is no table."""
    (port,) = [port for port in graph.inputs if "positions" in port.get_names()]
    for target in port.get_target_inputs():
        node: Any = target.get_node()
        table = node.input_value(0).get_partial_shape()
        if node.get_type_name() == "Gather" and table.is_static and len(table) == 2:
            rows, width = (part.get_length() for part in table)
            return rows, width
    return 0, 0


def _misfit_of_tokenizer(tokenizer: TextTokenizer, facts: ModelFacts, *, words: int) -> str | None:
    if not 0 <= facts.pad_id < words:
        return f"facts.pad_id is {facts.pad_id}, but words.npy has {words} tokens"
    if facts.word_rows != words:
        return f"facts.word_rows is {facts.word_rows}, but words.npy has {words} tokens"
    if tokenizer.special_tokens >= facts.max_tokens:
        return (
            f"facts.max_tokens is {facts.max_tokens}, but tokenizer.json adds {tokenizer.special_tokens} special tokens"
        )
    # Ids beyond the table are allowed for rare tokens, but not for the special tokens of every text.
    highest = int(tokenizer.tokenize(["a"], facts.max_tokens).ids.max())
    if highest >= words:
        return f"tokenizer.json gives the token {highest}, but words.npy has {words} tokens"
    return None


def _misfit_of_heads(heads: Heads, purpose: Purpose, width: int) -> str | None:
    expected: dict[str, int | None] = {}  # number of outputs; `None`: any number
    if purpose == "scores":
        expected = {SCORE_DENSE: width, SCORE_OUT: 1}
    elif purpose == "m3":
        expected = {SPARSE: 1, COLBERT: None}
    for name, outputs in expected.items():
        weight, bias = heads.get(f"{name}.weight"), heads.get(f"{name}.bias")
        if weight is None or bias is None:
            return f"heads.safetensors has no {name}.{'weight' if weight is None else 'bias'}"
        rows = weight.shape[0] if outputs is None and weight.ndim else outputs
        if weight.shape != (rows, width) or bias.shape != (rows,) or not rows:
            return f"heads.safetensors has {name} with the shapes {weight.shape} and {bias.shape} for rows of {width}"
        if weight.dtype != "float32" or bias.dtype != "float32":
            return f"heads.safetensors has {name} in {weight.dtype} and {bias.dtype}, not in float32"
    return None
