"""Which texts of a task get an instruction, and whether vectors are normalised: data that needs no mteb.

The policy "published" repeats what the models' authors ran. For the English and Chinese models this is in
https://github.com/FlagOpen/FlagEmbedding at commit 7f662a5 of 2023-08-09: `C_MTEB/eval_MTEB.py`,
`C_MTEB/eval_C-MTEB.py` and `C_MTEB/flag_dres_model.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from bge_integrations.catalogue import EN_INSTRUCTION, ZH_INSTRUCTION, ModelSpec
from bge_integrations.errors import SettingsError

__all__ = ["VERSION", "Family", "Handling", "Policy", "Treatment", "decide", "family_of", "read_policy"]

VERSION = 1
"""Version of the rules in `decide`. A change of it keeps results by older rules from being taken for newer ones."""

Policy = Literal["published", "always", "never"]
"""`"published"`: as the model's authors evaluated it. `"always"`: an instruction on every query. `"never"`: none."""
Family = Literal["english", "chinese", "instruct", "llm-embedder", "other"]
"""Models that their authors evaluated in the same way."""
Treatment = Literal["query", "document", "symmetric", "bare"]
"""How a text is encoded: with the encoder's instruction for a role, or bare, with no instruction at all."""

_SEARCH = ("Retrieval", "InstructionRetrieval")
_RERANKING = ("Reranking", "InstructionReranking")
# Their queries are texts like those of the corpus: arguments and questions.
_SYMMETRIC_SEARCH = re.compile(r"(Nano)?(ArguAna|Quora)")


@dataclass(frozen=True)
class Handling:
    """How the texts of one task are encoded.

    Attributes:
        query: Treatment of queries.
        document: Treatment of documents.
        other: Treatment of texts of a task without queries and documents, such as STS or classification.
        takes_task: Whether the instruction contains the description of the task.
        normalize: Whether vectors are normalised. `None`: as the encoder's own settings say.
    """

    query: Treatment = "query"
    document: Treatment = "document"
    other: Treatment = "symmetric"
    takes_task: bool = False
    normalize: bool | None = None

    def of(self, prompt_type: str | None) -> Treatment:
        """Returns the treatment of texts that mteb calls "query", "document" or, with `None`, neither."""
        return self.query if prompt_type == "query" else self.document if prompt_type == "document" else self.other


def read_policy(policy: str) -> Policy:
    """Returns a policy by its name.

    Raises:
        SettingsError: There is no such policy.
    """
    known: tuple[Policy, ...] = get_args(Policy)
    for one in known:
        if policy == one:
            return one
    raise SettingsError(f"policy={policy!r} is unknown; choose one of {', '.join(map(repr, known))}.")


def family_of(spec: ModelSpec | None) -> Family:
    """Returns the family of a catalogued model, or `"other"` for models without an instruction and unknown models."""
    if spec is None:
        return "other"
    if spec.query_template:
        return "instruct"
    if spec.task_instructions:
        return "llm-embedder"
    return {EN_INSTRUCTION: "english", ZH_INSTRUCTION: "chinese"}.get(spec.query_instruction, "other")  # type: ignore[return-value]


def decide(policy: Policy, family: Family, task: str, task_type: str) -> Handling:
    """Returns how the texts of a task are encoded.

    | family | policy "published" |
    |---|---|
    | english | queries of retrieval tasks, except ArguAna and QuoraRetrieval; nothing is normalised |
    | chinese | queries of retrieval and of reranking tasks; vectors are normalised |
    | instruct | queries, and all texts of tasks without queries; the task's own description in the model's template |
    | llm-embedder | queries and documents of retrieval and of reranking tasks |
    | other | prompts saved in the model's files, as sentence-transformers uses them; most models have none |

    The text of an instruction is the encoder's: its setting `query_instruction`, or what the catalogue or the
    checkpoint says. So `query_instruction=""` means no instruction under every policy. An unknown retrieval task counts
    as one of the usual ones, so an English model has the instruction on its queries.

    Args:
        policy: Policy.
        family: Family of the model.
        task: mteb's name of the task.
        task_type: mteb's type of the task, such as "Retrieval" or "STS".
    """
    if policy == "never":
        return Handling("bare", "bare", "bare")
    if family == "instruct":
        return Handling(document="bare", other="query", takes_task=True)
    if policy == "always":
        return Handling()
    searches, reranks = task_type in _SEARCH, task_type in _RERANKING
    if family == "english":
        asks = searches and not _SYMMETRIC_SEARCH.match(task)
        return Handling(query="query" if asks else "bare", normalize=False)
    if family == "chinese":
        return Handling(query="query" if searches or reranks else "bare", normalize=True)
    if family == "llm-embedder" and not (searches or reranks):
        return Handling("bare", "bare")
    return Handling()
