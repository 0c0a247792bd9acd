"""What is written around a text before it is encoded: the asymmetry between queries and documents.

BGE models were trained with an instruction before short queries and nothing before passages
(https://huggingface.co/BAAI/bge-large-en-v1.5, "Usage"). Symmetric uses want none on either side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import SettingsError
from bge_integrations.settings import Example

Role = Literal["query", "document", "symmetric"]

# The names under which sentence-transformers' `encode_query` and `encode_document` look for saved prompts, in order.
QUERY_PROMPT_NAMES = ("query",)
DOCUMENT_PROMPT_NAMES = ("document", "passage", "corpus")
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": QUERY_PROMPT_NAMES, "document": DOCUMENT_PROMPT_NAMES}


@dataclass(frozen=True)
class Instruction:
    """Text around a text."""

    prefix: str = ""
    suffix: str = ""

    def apply(self, text: str) -> str:
        """Returns the text as the model should see it."""
        return f"{self.prefix}{text}{self.suffix}"


def read_role(role: str) -> Role:
    """Returns a role as a plain `str`.

    Raises:
        SettingsError: A role that there isn't.
    """
    known: tuple[Role, ...] = get_args(Role)
    for one in known:
        if role == one:
            return one
    raise SettingsError(f"role={role!r} is unknown; the roles are {', '.join(map(repr, known))}.")


def resolve_instruction(
    role: Role,
    *,
    explicit: str | None,
    task: str | None,
    spec: ModelSpec | None,
    saved_prompts: Mapping[str, str],
    default_prompt_name: str | None = None,
    recognized_by: Literal["name", "record"] | None = None,
    examples: Sequence[Example] | None = None,
) -> Instruction:
    """Decides what goes around the texts of one role.

    An explicit instruction always wins; `""` is no instruction. A model that is called like a BGE model then takes what
    the catalogue says, and no prompt that its checkpoint also carries, so that nothing is put in twice. A model that
    only records a BGE model as its ancestor takes the prompts saved in its checkpoint if one of them holds text (since
    version 3, sentence-transformers saves empty ones with every model), else what the catalogue says of the ancestor.
    Any other model takes its saved prompts, as sentence-transformers' `encode_query`, `encode_document` and `encode`
    do.

    Args:
        role: The side that the texts are on.
        explicit: The user's own instruction for this role, or None.
        task: What an instruct model is asked to do, or the name of one of llm-embedder's tasks.
        spec: The catalogue's row; None for a model that is no BGE.
        saved_prompts: The prompts saved in the checkpoint.
        default_prompt_name: The one that the checkpoint applies where no role is given.
        recognized_by: How the catalogue's row was found; see `catalogue.Recognition`.
        examples: Task, query and response of each example that comes before a query.

    Raises:
        SettingsError: A role that there isn't; `task` for a model that has none, or one that it doesn't know;
            `examples` for a model that takes none.
    """
    role = read_role(role)
    if task is not None:
        _require_tasks(spec, task)
    if examples and not (spec and spec.example_template):
        raise SettingsError(
            f"examples are given, but {spec.model_id if spec else 'this model'} takes none; 'BAAI/bge-en-icl' does."
        )
    if explicit is not None:
        return Instruction(explicit)
    has_own_prompts = recognized_by == "record" and any(saved_prompts.values())
    if spec is not None and (task is not None or examples or not has_own_prompts):
        return _catalogued(role, spec, task, examples or ())
    for name in _PROMPT_NAMES.get(role, ()):
        if name in saved_prompts:
            return Instruction(saved_prompts[name])
    return Instruction(saved_prompts.get(default_prompt_name or "", ""))


def _catalogued(role: Role, spec: ModelSpec, task: str | None, examples: Sequence[Example]) -> Instruction:
    if role == "symmetric":
        return Instruction()
    if spec.task_instructions and task is not None:
        query, passage = spec.task_instructions[task]
        return Instruction(query if role == "query" else passage)
    if role == "document":
        return Instruction(spec.passage_instruction)
    if spec.query_template:
        # Split first: a task may itself speak of {query}.
        before, _, after = spec.query_template.partition("{query}")
        asked = task or spec.default_task or ""
        shown = "".join(_filled(spec.example_template or "", *example) + "\n\n" for example in examples)
        return Instruction(shown + before.replace("{task}", asked), after.replace("{task}", asked))
    return Instruction(spec.query_instruction)


def _filled(template: str, task: str, query: str, response: str) -> str:
    """Fills a template in one go: what is put in may itself speak of {query}."""
    values = {"{task}": task, "{query}": query, "{response}": response}
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], template)


def _require_tasks(spec: ModelSpec | None, task: str) -> None:
    if spec is not None and spec.query_template:
        return
    if spec is not None and spec.task_instructions:
        if task not in spec.task_instructions:
            raise SettingsError(
                f"task={task!r} is none of {spec.model_id}'s tasks: {', '.join(map(repr, spec.task_instructions))}."
            )
        return
    raise SettingsError(
        f"task={task!r} is given, but {spec.model_id if spec else 'this model'} takes no task; use query_instruction."
    )
