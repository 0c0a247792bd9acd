"""What a run of `embed_corpus` does, written down before the first vector is computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Self

from bge_integrations.catalogue.instructions import Role
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import CorpusDataError, SettingsError
from bge_integrations.fingerprint import Comparison, Fingerprint
from bge_integrations.redaction import shown
from bge_integrations.settings import EncoderSettings, TransformersKwargs

__all__ = [
    "MANIFEST",
    "OWN_FOLDER",
    "PLAN",
    "Dtype",
    "Kind",
    "Plan",
    "Shard",
    "Task",
    "instruction_of",
    "read_json",
    "recorded_settings",
    "text_digest",
    "to_json",
]

FORMAT = 1
"""Version of the plan, of the manifest and of the shards."""
OWN_FOLDER = "_corpus"
"""The folder beside the shards for everything else. Readers of Parquet skip names that begin like this."""
MANIFEST, PLAN = f"{OWN_FOLDER}/manifest.json", "plan.json"

Dtype = Literal["float32", "float16"]
Kind = Literal["null", "bool", "int", "float", "str", "json"]
"""Types of the other columns of an input without types of its own."""

_RECORDED = (
    *("model_name", "revision", "precision", "engine", "max_length", "pooling", "normalize", "truncate_dim"),
    *("query_instruction", "document_instruction", "task", "examples", "transformers_kwargs"),
)
"""Settings that change vectors. Others are not recorded: a folder must not decide that code of a model is run, or where
texts are sent."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the user asked for. A run goes on only with the same."""

    role: Role
    dtype: Dtype
    chunk: bool
    text_columns: tuple[str, ...] | None
    id_column: str | None
    reject: bool
    rows_per_shard: int

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` gave, after JSON."""
        columns = data["text_columns"]
        return cls(**{**data, "text_columns": None if columns is None else tuple(columns)})


@dataclass(frozen=True)
class Shard:
    """One file of the output.

    Attributes:
        rows: Its rows.
        new: Texts of it that no earlier row has.
        size: Its size in bytes; 0 before it is written.
        sha256: The SHA-256 of its content; "" before it is written.
    """

    rows: int
    new: int
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done, and with what.

    Attributes:
        task: What the user asked for.
        source: The input's last name.
        state: `CorpusSource.state` of the input.
        content: Digest of all rows of the input.
        fingerprint: The model's.
        settings: Settings with which the model gives these vectors.
        instruction: Text before and after each text.
        batch_tokens: Greatest number of tokens in a forward pass. The bits of a vector depend on it.
        rejected: Number of rows that were put aside.
        columns: Types of the other columns, by name; `None`: they are those of the input, in the shards' schema.
        shards: The shards.
    """

    task: Task
    source: str
    state: str
    content: str
    fingerprint: Fingerprint
    settings: dict[str, Any]
    instruction: tuple[str, str]
    batch_tokens: int
    rejected: int
    columns: dict[str, Kind] | None
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def texts(self) -> int:
        """Different texts of all shards."""
        return sum(shard.new for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "format": FORMAT,
            "rows": self.rows,
            "texts": self.texts,
            "rejected": self.rejected,
            "source": self.source,
            "state": self.state,
            "content": self.content,
            "task": dataclasses.asdict(self.task),
            "fingerprint": self.fingerprint.to_dict(),
            "settings": self.settings,
            "instruction": list(self.instruction),
            "batch_tokens": self.batch_tokens,
            "columns": self.columns,
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], place: Path) -> Self:
        """Reads what `to_dict` gave.

        Raises:
            CorpusDataError: It is no plan, or another version wrote it.
        """
        if data.get("format") != FORMAT:
            raise CorpusDataError(
                f"{place} has the format {shown(data.get('format'))}, and this version reads {FORMAT}. Use the version "
                "of this package that wrote it, or embed the corpus again."
            )
        try:
            return cls(
                task=Task.from_dict(data["task"]),
                fingerprint=Fingerprint.from_dict(data["fingerprint"]),
                instruction=tuple(data["instruction"]),
                shards=tuple(Shard(**shard) for shard in data["shards"]),
                **{
                    name: data[name]
                    for name in ("source", "state", "content", "settings", "batch_tokens", "rejected", "columns")
                },
            )
        except (KeyError, TypeError) as error:
            raise CorpusDataError(f"{place} is damaged: {error!r}. Remove its folder, and begin again.") from error

    @property
    def encoder_settings(self) -> EncoderSettings:
        """The settings with which the model gives these vectors."""
        kwargs = TransformersKwargs(**self.settings.get("transformers_kwargs", {}))
        return EncoderSettings(**{**self.settings, "transformers_kwargs": kwargs})

    def require_task(self, task: Task, folder: Path) -> None:
        """Checks that a run goes on with what it began with.

        Raises:
            SettingsError: It was begun with another option. The message names it.
        """
        for field in dataclasses.fields(task):
            before, now = getattr(self.task, field.name), getattr(task, field.name)
            if before != now:
                raise SettingsError(
                    f"{folder} was begun with {field.name}={before!r}, and now has {field.name}={now!r}. Go on with "
                    "the former value, or choose another folder."
                )

    def require_model(self, encoder: BgeEncoder, folder: Path) -> None:
        """Checks that a run goes on with the model that it began with.

        Raises:
            SettingsError: The model or its settings differ. The message says how.
        """
        settings = recorded_settings(encoder)
        changed = [
            f"{name} was {shown(self.settings.get(name))} then, and is {shown(settings.get(name))} now"
            for name in sorted({*self.settings, *settings} - {"model_name", "revision"})
            if self.settings.get(name) != settings.get(name)
        ]
        found = self.compare(encoder)
        if changed or found.differences:
            said = "; ".join(dict.fromkeys((*changed, *found.differences)))
            raise SettingsError(
                f"{folder} was begun with another model: {said}. Go on with the former model, or choose another folder."
            )

    def compare(self, encoder: BgeEncoder) -> Comparison:
        """Compares the model of these vectors with another one, for the role of the texts."""
        found = self.fingerprint.compare(encoder.fingerprint())
        now = instruction_of(encoder, self.task.role)
        if now == self.instruction:
            return found
        about = f"the {self.task.role} instruction was {shown(self.instruction)} then, and is {shown(now)} now"
        return Comparison("different", (about, *found.differences), found.cosines)


def instruction_of(encoder: BgeEncoder, role: Role) -> tuple[str, str]:
    """Returns the text before and after each text of a role."""
    found = encoder.instruction(role)
    return found.prefix, found.suffix


def recorded_settings(encoder: BgeEncoder) -> dict[str, Any]:
    """Returns the settings of an encoder that change its vectors, as plain data for JSON."""
    settings = encoder.settings
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _RECORDED or value in (field.default, TransformersKwargs()):
            continue
        found[field.name] = dataclasses.asdict(value) if isinstance(value, TransformersKwargs) else value
    # As JSON gives it back, so that it compares equal.
    return dict(json.loads(json.dumps(found)))


def to_json(data: object) -> bytes:
    """Returns JSON of the same bytes for equal data."""
    return (json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file; `None` if there is none.

    Raises:
        CorpusDataError: It is damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorpusDataError(f"{path} is no JSON: {error}. Remove its folder, and begin again.") from error
    if not isinstance(found, dict):
        raise CorpusDataError(f"{path} is no JSON object. Remove its folder, and begin again.")
    return found


def text_digest(text: str) -> str:
    """Returns the SHA-256 of a text in UTF-8, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
