"""Instructions: the text that is added to a query or a document before it is encoded.

BGE models were trained with an instruction before short queries and no instruction before passages
(https://huggingface.co/BAAI/bge-large-en-v1.5, "Usage"). Symmetric uses need no instruction.
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

# The names of saved prompts that sentence-transformers' `encode_query` and `encode_document` try, in this order.
QUERY_PROMPT_NAMES = ("query",)
DOCUMENT_PROMPT_NAMES = ("document", "passage", "corpus")
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": QUERY_PROMPT_NAMES, "document": DOCUMENT_PROMPT_NAMES}


@dataclass(frozen=True)
class Instruction:
    """The text before and after each text of a role."""

    prefix: str = ""
    suffix: str = ""

    def apply(self, text: str) -> str:
        """Returns the text as the model reads it."""
        return f"{self.prefix}{text}{self.suffix}"


def read_role(role: str) -> Role:
    """Returns a role as a plain `str`.

    Raises:
        SettingsError: The role is unknown.
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
    """Returns the instruction for the texts of one role.

    The first of these rules that applies decides:

    1. An explicit instruction is used. `""` is no instruction.
    2. A model with the name of a BGE model uses the catalogue's instruction. Prompts in its checkpoint are ignored, so
       that no instruction is added twice.
    3. A model that only records a BGE model as its ancestor uses the prompts saved in its checkpoint. If all of them
       are empty, or `task` or `examples` is given, it uses the catalogue's instruction of the ancestor. (Since version
       3, sentence-transformers saves empty prompts with every model.)
    4. Any other model uses its saved prompts, as sentence-transformers' `encode_query`, `encode_document` and `encode`
       do.

    Args:
        role: Role of the texts.
        explicit: The user's own instruction for this role, or `None`.
        task: Task description for an instruct model, or the name of one of llm-embedder's tasks.
        spec: Row of the catalogue, or `None` for a model that is not a BGE model.
        saved_prompts: Prompts saved in the checkpoint.
        default_prompt_name: Name of the prompt that the checkpoint uses for texts without a role.
        recognized_by: How the row was found; see `catalogue.Recognition`.
        examples: Task, query and response of each example before a query.

    Raises:
        SettingsError: The role is unknown, the model takes no `task` or does not know this one, or the model takes no
            `examples`.
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
        # Split before the replacement: a task can contain "{query}".
        before, _, after = spec.query_template.partition("{query}")
        asked = task or spec.default_task or ""
        shown = "".join(example_text(spec, example) for example in examples)
        return Instruction(shown + before.replace("{task}", asked), after.replace("{task}", asked))
    return Instruction(spec.query_instruction)


def example_text(spec: ModelSpec, example: Example) -> str:
    """Returns an example as it stands before a query."""
    return _filled(spec.example_template or "", *example) + "\n\n"


def _filled(template: str, task: str, query: str, response: str) -> str:
    """Fills a template in one step, since the values can contain "{query}"."""
    values = {"{task}": task, "{query}": query, "{response}": response}
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], template)


def _require_tasks(spec: ModelSpec | None, task: str) -> None:
    if spec is not None and spec.query_template:
        return
    if spec is not None and spec.task_instructions:
        if task not in spec.task_instructions:
            raise SettingsError(
                f"task={task!r} is none of {spec.model_id}'s tasks; choose one of "
                f"{', '.join(map(repr, spec.task_instructions))}."
            )
        return
    raise SettingsError(
        f"task={task!r} is given, but {spec.model_id if spec else 'this model'} takes no task; use query_instruction."
    )
