"""Reads what a request says: its texts, and the side that they are on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema

from bge_integrations.backend.scheduler import Priority
from bge_integrations.calls.inputs import check_text
from bge_integrations.catalogue.instructions import DOCUMENT_PROMPT_NAMES, QUERY_PROMPT_NAMES, Role, read_role
from bge_integrations.errors import InvalidInputError, SettingsError
from bge_integrations.server.errors import Refused
from bge_integrations.texts import is_text, kind_of

if TYPE_CHECKING:
    from bge_integrations.server.limits import Limits

_STRINGS = {"type": "array", "items": {"type": "string"}}
Text = Annotated[Any, WithJsonSchema({"type": "string"})]
"""A text; `text_of` checks it."""
Texts = Annotated[Any, WithJsonSchema(_STRINGS)]
"""A list of texts; `texts_of` checks it."""
TextOrTexts = Annotated[Any, WithJsonSchema({"oneOf": [{"type": "string"}, _STRINGS]})]
"""A text or a list of texts; `texts_of` checks it."""

SIDES: dict[str, Role] = {
    **dict.fromkeys((*QUERY_PROMPT_NAMES, "search_query", "retrieval.query"), "query"),
    **dict.fromkeys((*DOCUMENT_PROMPT_NAMES, "search_document", "retrieval.passage"), "document"),
    **dict.fromkeys(("symmetric", "classification", "clustering", "text-matching", "separation"), "symmetric"),
}
"""The words of the interfaces for the side that a text is on."""

_TOKEN_IDS = (
    "{field} holds token ids, not texts. Ids mean nothing without the tokenizer that made them, so they are never "
    "embedded: those of OpenAI's tokenizer would give a wrong vector. Send texts. In LangChain, write "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)."
)


class Body(BaseModel):
    """The body of a request. Unknown fields are ignored, since clients send fields of their own."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


class Sided(Body):
    """A request with texts that are on a side. Three names are in use for the side; `side_of` reads them."""

    input_type: str | None = None
    prompt_name: str | None = None
    task: str | None = None


class Queued(Sided):
    """A request for results of texts, which wait in the queue of queries or in that of documents.

    Without `priority`, the side says the queue.
    """

    priority: Priority | None = None


def read(kind: type[Body], content: object) -> Body:
    """Reads the JSON of a body.

    Raises:
        Refused: A field is missing, or of another type. The message names the field.
    """
    if not isinstance(content, dict):
        raise Refused("invalid", f"The body is {_named(content)}, not an object with fields.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused("invalid", f"{place}: {first['msg']}.", place=place) from None


def texts_of(value: object, field: str, limits: Limits) -> list[str]:
    """Returns the texts of a field: of a list, or one text.

    Raises:
        Refused: The value is no text or list of texts, the list is empty or too long, or a text is too long.
    """
    if is_text(value):
        value = [value]
    if not isinstance(value, list):
        raise Refused("invalid", f"{field} is {_named(value)}, not a text or a list of texts.", place=field)
    if not value:
        raise Refused("invalid", f"{field} is an empty list; send at least one text.", place=field)
    if len(value) > limits.max_texts:
        raise Refused(
            "too_large",
            f"{field} has {len(value)} texts, the limit of a request is {limits.max_texts}. Send them in several "
            "requests.",
            place=field,
        )
    if all(_is_ids(item) for item in value):
        raise Refused("invalid", _TOKEN_IDS.format(field=field), place=field)
    return [text_of(item, f"{field}[{place}]", limits) for place, item in enumerate(value)]


def list_of(value: object, field: str, limits: Limits) -> list[str]:
    """Returns the texts of a field that must be a list. Arguments and errors are those of `texts_of`."""
    if is_text(value):
        raise Refused("invalid", f"{field} is a text, not a list of texts.", place=field)
    return texts_of(value, field, limits)


def text_of(value: object, place: str, limits: Limits) -> str:
    """Returns a text.

    Raises:
        Refused: The value is not a text, has a lone surrogate, or is too long.
    """
    if not is_text(value):
        raise Refused("invalid", f"{place} is {_named(value)}, not a text. Leave it out or convert it.", place=place)
    if len(value) > limits.max_characters:
        raise Refused(
            "too_large",
            f"{place} has {len(value):,} characters, the limit of a text is {limits.max_characters:,}. Split it.",
            place=place,
        )
    try:
        return check_text(value)
    except InvalidInputError as error:
        raise Refused("invalid", str(error).replace("Text 0", place, 1), place=place) from None


def side_of(request: Sided, default: Role) -> Role:
    """Returns the side that the texts of a request are on.

    Raises:
        Refused: The word for it is unknown, or two words contradict each other.
    """
    given = {name: word for name in Sided.model_fields if (word := getattr(request, name)) is not None}
    for name, word in given.items():
        if word not in SIDES:
            raise Refused(
                "invalid", f"{name}={word!r} is unknown; choose one of {', '.join(map(repr, SIDES))}.", place=name
            )
    roles = {SIDES[word] for word in given.values()}
    if len(roles) > 1:
        raise Refused(
            "invalid", f"{' and '.join(given)} name different sides; send one of them.", place=next(iter(given))
        )
    return roles.pop() if roles else default


def read_default_side(word: str) -> Role:
    """Returns the side for texts for which a request names none.

    Raises:
        SettingsError: The word is not a role.
    """
    try:
        return read_role(word)
    except SettingsError:
        raise SettingsError(
            f"default_input_type={word!r} is unknown; choose 'query', 'document' or 'symmetric'."
        ) from None


def _is_ids(value: object) -> bool:
    """Whether a value is a token id, or a list of token ids."""
    if isinstance(value, list):
        return bool(value) and all(_is_ids(item) and not isinstance(item, list) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


_JSON_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "a text",
}


def _named(value: object) -> str:
    return _JSON_NAMES.get(type(value)) or kind_of(value)
