"""Runs MTEB and C-MTEB with this package's models, with the instructions that the models' authors used.

It needs `pip install 'bge-integrations[mteb]'` and Python 3.11 or newer. mteb loads the tasks and computes the scores.

**Why a policy.** A score of a BGE model depends on where the instruction goes and on normalisation, and the authors
did not treat all tasks alike. Two well-known programs give other numbers than the published ones:

- mteb's own entries of the BGE models put the instruction before every query. So ArguAna and QuoraRetrieval get it, and
  the four English reranking tasks, which had none in the published runs. For bge-large-en-v1.5 on ArguAna, mteb 1.18
  lists 64.52, and the authors published 63.54. These entries also normalise the English models' vectors. The authors
  did not, because a classifier does better on raw vectors: on MTOPIntentClassification, mteb lists 69.96, and the
  authors published 79.49. Six models have no entry: bge-large-zh-noinstruct, llm-embedder, bge-code-v1,
  bge-reasoner-embed-qwen3-8b-0923, bge-reranker-base and bge-reranker-large. bge-multilingual-gemma2 and bge-en-icl run
  without the instruction that they need.
- FlagEmbedding's `evaluation.mteb` encodes the texts of STS, clustering and classification tasks as queries. So an
  English or Chinese model gets the instruction for retrieval before all of them. It normalises the vectors of all tasks
  but classification, also of English clustering tasks, which the published runs did not. Its guide asks for mteb 1.15.

See `policy.decide` for the rules of each family of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations.evaluation.mteb.local import LocalTask, find_local_tasks
from bge_integrations.evaluation.mteb.policy import Policy, decide
from bge_integrations.evaluation.mteb.report import MtebReport, TaskScore
from bge_integrations.evaluation.mteb.run import run_mteb
from bge_integrations.evaluation.mteb.wrappers import MtebEncoder, MtebReranker, MtebSearch

if TYPE_CHECKING:
    from bge_integrations.evaluation.searchers import Output
    from bge_integrations.m3.encoder import BgeM3Encoder

__all__ = [
    "LocalTask",
    "MtebReport",
    "TaskScore",
    "as_mteb_model",
    "as_mteb_reranker",
    "as_mteb_search",
    "decide",
    "find_local_tasks",
    "run_mteb",
]


def as_mteb_model(encoder: object, policy: Policy = "published") -> MtebEncoder:
    """Returns an encoder that `mteb.evaluate` takes.

    Each different text of a call is encoded once. So equal texts have equal vectors, and ties stay ties. No weights are
    loaded a second time, although a policy needs encoders with different settings.

    Example:
        ```python
        model = as_mteb_model(BgeEncoder("BAAI/bge-small-en-v1.5"))
        result = mteb.evaluate(model, mteb.get_benchmark("MTEB(eng, v1)").tasks)
        ```

    Args:
        encoder: A `BgeEncoder`, the embeddings of this package for LangChain or LlamaIndex, or a `BgeM3Encoder`, of
            which the dense vectors are taken. Its settings `query_instruction` and `task` go before the instruction
            of the policy. Its setting `show_progress` decides on progress bars, not mteb's argument.
        policy: `"published"`: as the model's authors evaluated it; see `policy.decide`. For the English and the Chinese
            models it also decides on normalisation, whatever the encoder's setting. A model that is not a BGE model
            gets the prompts in its own files, as with sentence-transformers. `"always"`: the model's instruction on
            every query of every task with queries. `"never"`: no instruction at all.

    Raises:
        SettingsError: There is no encoder, or no such policy.
        MissingExtraError: mteb is not installed, or this Python is too old for it.
    """
    return MtebEncoder(encoder, policy)


def as_mteb_reranker(reranker: object) -> MtebReranker:
    """Returns a cross encoder that `mteb.evaluate` takes, for reranking tasks.

    For two stages, save the predictions of an encoder with mteb's `prediction_folder`, and convert the retrieval task
    with its `convert_to_reranking`.

    Args:
        reranker: A `BgeReranker`, or an object of this package that holds one.

    Raises:
        SettingsError: There is no reranker.
        MissingExtraError: mteb is not installed, or this Python is too old for it.
    """
    return MtebReranker(reranker)


def as_mteb_search(m3: BgeM3Encoder, output: Output = "mixed") -> MtebSearch:
    """Returns a search with bge-m3 that `mteb.evaluate` takes, for retrieval and reranking tasks.

    Args:
        m3: The encoder.
        output: What is compared: `"dense"`, `"sparse"`, `"colbert"`, or `"mixed"`, the weighted mean of all three.
            Every document of a corpus is compared, or every candidate of a reranking task. For a large corpus,
            `"colbert"` and `"mixed"` take long.

    Raises:
        SettingsError: `m3` is no `BgeM3Encoder`, or there is no such output.
        MissingExtraError: mteb is not installed, or this Python is too old for it.
    """
    return MtebSearch(m3, output)
