"""What made a vector index: model files, settings of document vectors, and the vectors of eight probe texts."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from bge_integrations.errors import FingerprintError
from bge_integrations.texts import kind_of, shortened

__all__ = ["LEAST_COSINE", "METADATA_KEY", "PROBES", "Comparison", "Fingerprint"]

FORMAT = 1
"""Version of the JSON, of the probe texts and of the projection. Fingerprints of two versions can't be compared."""

LEAST_COSINE = 0.999
"""Vectors of every probe text are at least this similar if two fingerprints are compatible."""

_EQUAL_COSINE = 0.999_99
_EQUAL_LENGTHS = 0.02
"""Greatest relative difference of two vectors' lengths. Rounded models change those of normalised vectors less."""
_CUT = ": only the long text, so texts are cut at another length"
_COMPONENTS = 40
METADATA_KEY = "bge_fingerprint"
"""Name of the fingerprint in metadata of collections, tables and schemas. Its value is the JSON of `to_json`."""

_PLACES = ("harbour", "library", "orchard", "glacier", "station", "kitchen", "quarry", "theatre", "desert", "workshop")
_THINGS = ("clock", "engine", "violin", "ledger", "lantern", "turbine", "bakery", "telescope", "bridge", "garden")
_LONG = " ".join(
    f"In the {_PLACES[number % 10]} stood a {_THINGS[number * 7 % 10]} that was {number * number % 89 + 2} years old, "
    f"and a {_THINGS[(number * 3 + 1) % 10]} from another {_PLACES[(number * 9 + 4) % 10]} lay beside it."
    for number in range(28)
)

PROBES = (
    "Paris",
    "How does a plant turn sunlight into food?",
    "The committee approved the budget on Tuesday, although two of its members had asked for more time to read the "
    "report; the mayor called the vote A GOOD DAY for the city.",
    "向量检索会把含义相近的句子放在一起，即使它们没有一个相同的词。",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2  # square metres",
    "Invoice 2024-0117: 12 units at EUR 1,499.95 each, 7.5 % discount, due 2024-03-31.",
    "Žluťoučký kůň, naïve café, дом у реки, 東京の夜, مرحبا بالعالم 🙂",
    _LONG,
)
"""The probe texts: a word, a question, prose with capitals, Chinese, code, numbers, other scripts, and a long text of
about 600 tokens, which shows where texts are cut."""

State = Literal["equal", "compatible", "different"]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two fingerprints.

    Attributes:
        state: `"equal"`: the same model files, settings and vectors. `"compatible"`: other files, precision or engine,
            but the same vectors within `least_cosine`, so one index can hold both. `"different"`: their vectors must
            not be mixed.
        differences: What differs, one sentence each; empty if nothing does. Sentences can also belong to a compatible
            pair: they say what differs without effect.
        cosines: Estimated cosine of the two vectors of each probe text; empty if dimensions or versions differ.
    """

    state: State
    differences: tuple[str, ...]
    cosines: tuple[float, ...] = ()

    @property
    def least_cosine(self) -> float | None:
        """The least of `cosines`; `None` without cosines."""
        return min(self.cosines, default=None)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the document vectors of an index depend on, small enough for the index's own metadata.

    The vectors of `PROBES` are stored in 40 numbers each: a fixed random projection of the unit vector (rows of signs
    that come from SHAKE-256), in float16, and the vector's length beside it. `1 - cosine` of two vectors is read from
    the distance of their projections. This estimate has a relative standard deviation of 22 % (`sqrt(2 / 40)`), and it
    is wrong by a factor of 2 in less than 0.4 % of cases. So a probe whose true cosine is 0.998 or less is found with
    99.6 % certainty, one of 0.9995 or more passes with 99.9 %. Other models have cosines below 0.9, float16 and
    bfloat16 above 0.9999, so the estimate is far better than the decision needs. Vectors of up to 40 dimensions are
    stored whole.

    Attributes:
        model: The model's hub id, or the last part of a local folder's path.
        content: Digest of all model files (weights, tokenizer, configuration), 32 hex digits; `None` if unknown, as
            for a remote model.
        weights: Digest of the files with weights, 32 hex digits; `None` if unknown, as for prepared folders.
        tokenizer: Digest of the tokenizer's files, 32 hex digits; `None` if unknown.
        dimension: Length of the vectors.
        pooling: sentence-transformers' name of the pooling; `None` if unknown.
        normalizes: Whether vectors are L2-normalised; `None` if unknown.
        document_instruction: Text before each document; `None` if unknown.
        document_suffix: Text after each document.
        max_length: Number of tokens at which documents are cut; `None` if unknown.
        precision: Precision of the computation; `None` if unknown.
        engine: Name of the engine that computed the probes; `None` if unknown.
        lengths: L2 norms of the eight vectors, with four significant digits.
        sketch: The projections: base64 of little-endian float16, shape [8, min(40, dimension)].
    """

    model: str
    content: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    dimension: int
    pooling: str | None = None
    normalizes: bool | None = None
    document_instruction: str | None = None
    document_suffix: str = ""
    max_length: int | None = None
    precision: str | None = None
    engine: str | None = None
    lengths: tuple[float, ...]
    sketch: str

    @classmethod
    def of_vectors(cls, vectors: NDArray[np.floating[Any]], **facts: Any) -> Self:  # noqa: ANN401 - the fields' own types
        """Returns the fingerprint of a model.

        Args:
            vectors: Document vectors of `PROBES`, shape [8, dimension].
            **facts: The other fields, without `dimension`, `lengths` and `sketch`.

        Raises:
            FingerprintError: The array has another shape, or NaN or infinity in it.
        """
        found = np.asarray(vectors, dtype=np.float64)
        if found.ndim != 2 or len(found) != len(PROBES) or not found.shape[1]:
            raise FingerprintError(
                f"vectors of shape {list(found.shape)} are not those of the {len(PROBES)} probe texts; give an array "
                f"of shape [{len(PROBES)}, dimension]."
            )
        if not np.isfinite(found).all():
            raise FingerprintError("the vectors of the probe texts hold NaN or infinity; the model can't be used.")
        lengths = np.linalg.norm(found, axis=1)
        units = found / np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
        sketch = np.ascontiguousarray(units @ _projection(found.shape[1]), dtype="<f2")
        return cls(
            dimension=found.shape[1],
            lengths=tuple(float(f"{length:.4g}") for length in lengths),
            sketch=base64.b64encode(sketch.tobytes()).decode("ascii"),
            **facts,
        )

    def compare(self, other: Fingerprint, *, least_cosine: float = LEAST_COSINE) -> Comparison:
        """Compares the fingerprint of an index with that of a model.

        Args:
            other: Fingerprint of the model in use. The sentences call it "now", and this one "then".
            least_cosine: Least cosine of every probe text for `"compatible"`.

        Returns:
            State and differences. Dimension, document instruction, limit, vectors' lengths and cosines decide. Digests,
            names, pooling, precision and engine alone only explain.
        """
        if self.dimension != other.dimension:
            about = f"vectors had {self.dimension} dimensions then, and have {other.dimension} now"
            return Comparison("different", (about, *self._causes(other)))
        cosines = self._cosines(other)
        effects = lengths_differ(np.array(self.lengths), np.array(other.lengths))
        if unlike_probes := unlike(cosines, least_cosine, "probe texts"):
            only_long = min(cosines[:-1]) >= least_cosine
            effects.append(f"{unlike_probes}{_CUT if only_long else ''}")
        settings = [*self._other_settings(other)]
        causes = self._causes(other)
        differences = (*settings, *causes, *effects)
        if effects or settings:
            return Comparison("different", differences, cosines)
        same = self.content is not None and not causes and min(cosines) >= _EQUAL_COSINE
        state: State = "equal" if self == other or same else "compatible"
        return Comparison(state, differences, cosines)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON. Fields that are unknown or empty are left out."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "")}
        # An empty instruction is known: the model takes none.
        if self.document_instruction is not None:
            fields["document_instruction"] = self.document_instruction
        return {METADATA_KEY: FORMAT, **fields, "lengths": list(self.lengths)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` gave.

        Raises:
            FingerprintError: It is not a fingerprint, it is damaged, or another version of this package wrote it in a
                format that this one can't read.
        """
        if not isinstance(data, Mapping) or METADATA_KEY not in data:
            raise FingerprintError(f"{shortened(data)} is not a fingerprint; `bge fingerprint MODEL` prints one.")
        if data[METADATA_KEY] != FORMAT:
            raise FingerprintError(
                f"this fingerprint has the format {data[METADATA_KEY]!r}, but this version reads format {FORMAT}. Use "
                "the version of bge-integrations that wrote it, or record the fingerprint again with overwrite=True."
            )
        known = {field.name: field for field in dataclasses.fields(cls)}
        given = {name: value for name, value in data.items() if name in known}  # later versions may add fields
        for name, field in known.items():
            if field.default is dataclasses.MISSING and name not in given:
                raise FingerprintError(f"this fingerprint lacks {name!r}: it is damaged. Record it again.")
            if name in given and not _FITS[name](given[name]):
                raise FingerprintError(
                    f"{name} in this fingerprint is {shortened(given[name])}, {kind_of(given[name])}: it is damaged. "
                    "Record it again."
                )
        found = cls(**{**given, "lengths": tuple(map(float, given["lengths"]))})
        found._vectors  # noqa: B018 - reads the projections, which can be damaged too
        return found

    def to_json(self) -> str:
        """Returns JSON on one line, in ASCII, with sorted keys: about 1.4 kilobytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` gave.

        Raises:
            FingerprintError: As `from_dict`, or it is not JSON.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise FingerprintError(f"{shortened(text)} is not a fingerprint: {error}.") from error
        return cls.from_dict(data)

    @cached_property
    def _vectors(self) -> NDArray[np.float64]:
        """The projections, shape [8, min(40, dimension)]."""
        width = min(_COMPONENTS, self.dimension)
        try:
            found = np.frombuffer(base64.b64decode(self.sketch, validate=True), dtype="<f2").astype(np.float64)
            rows = found.reshape(len(PROBES), width)
        except ValueError as error:
            raise FingerprintError(
                f"the probe vectors in this fingerprint can't be read ({error}): it is damaged. Record it again."
            ) from error
        if not np.isfinite(rows).all():
            raise FingerprintError("the probe vectors in this fingerprint are not numbers: it is damaged.")
        return rows

    def _cosines(self, other: Fingerprint) -> tuple[float, ...]:
        distances = np.square(self._vectors - other._vectors).sum(axis=1)
        return tuple(float(cosine) for cosine in np.maximum(1 - distances / 2, -1))

    def _other_settings(self, other: Fingerprint) -> list[str]:
        """Returns sentences on settings that make other vectors, though not always of the probes."""
        found = []
        then, now = self.document_instruction, other.document_instruction
        if None not in (then, now) and (then, self.document_suffix) != (now, other.document_suffix):
            before, after = (
                repr(f"{one.document_instruction}…{one.document_suffix}" if one.document_suffix else text)
                for one, text in ((self, then), (other, now))
            )
            found.append(f"another instruction for documents: {before} then, {after} now")
        if None not in (self.max_length, other.max_length) and self.max_length != other.max_length:
            found.append(f"texts were cut at {self.max_length} tokens then, and are cut at {other.max_length} now")
        return found

    def _causes(self, other: Fingerprint) -> list[str]:
        """Returns sentences on what can make other vectors, but need not."""
        found = []
        other_weights = _differ(self.weights, other.weights)
        if self.model != other.model:
            found.append(f"another model: {self.model!r} then, {other.model!r} now")
        elif other_weights:
            found.append(
                f"the weights of {self.model} have changed: fine-tuned or saved again since (digest "
                f"{str(self.weights)[:8]} then, {str(other.weights)[:8]} now)"
            )
        if _differ(self.tokenizer, other.tokenizer) and (self.model == other.model or not other_weights):
            found.append("the tokenizer's files have changed")
        if _differ(self.content, other.content) and not found:
            found.append(f"the files of {self.model} have changed")
        for name, then, now in (
            ("pooling", self.pooling, other.pooling),
            ("precision", self.precision, other.precision),
            ("engine", self.engine, other.engine),
        ):
            if _differ(then, now):
                found.append(f"another {name}: {then} then, {now} now")
        return found


def lengths_differ(then: NDArray[np.float64], now: NDArray[np.float64]) -> list[str]:
    """Returns a sentence if vectors of the same texts have other lengths; else [].

    Args:
        then: Lengths in the index, shape [texts].
        now: Lengths from the model, shape [texts].
    """
    if (np.abs(then - now) <= _EQUAL_LENGTHS * np.maximum(then, now)).all():
        return []
    if _are_units(then) == _are_units(now):
        words = "of another length then"
    else:
        words = "normalised then, and are not now" if _are_units(then) else "not normalised then, and are now"
    return [f"vectors were {words} (lengths {_range(then)} then, {_range(now)} now)"]


def unlike(cosines: Sequence[float] | NDArray[np.float64], least: float, kind: str) -> str | None:
    """Returns a sentence if some vectors differ too much; else `None`.

    Args:
        cosines: Cosine of the two vectors of each text.
        least: Least cosine that is enough.
        kind: What the texts are, in the plural.
    """
    count = int((np.asarray(cosines) < least).sum())
    if not count:
        return None
    return (
        f"the vectors of {count} of {len(cosines)} {kind} differ (least cosine {min(cosines):.4f}, at least {least:g} "
        "is needed)"
    )


def _differ(then: object, now: object) -> bool:
    return None not in (then, now) and then != now


def _are_units(lengths: NDArray[np.float64]) -> bool:
    return bool((np.abs(lengths - 1) <= _EQUAL_LENGTHS).all())


def _range(lengths: NDArray[np.float64]) -> str:
    least, greatest = f"{lengths.min():.3g}", f"{lengths.max():.3g}"
    return least if least == greatest else f"{least} to {greatest}"


@cache
def _projection(dimension: int) -> NDArray[np.float64]:
    """Returns a fixed matrix of shape [dimension, components] that keeps distances, but for chance.

    Its entries are random signs over the root of the number of components (Achlioptas 2003, "Database-friendly random
    projections"). The signs are the bits of SHAKE-256, since numpy's generators may change between versions.
    """
    if dimension <= _COMPONENTS:
        return np.eye(dimension)
    count = dimension * _COMPONENTS
    drawn = hashlib.shake_256(f"{METADATA_KEY} {FORMAT} {dimension}".encode()).digest((count + 7) // 8)
    bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8), count=count)
    return np.where(bits.reshape(dimension, _COMPONENTS), 1.0, -1.0) / np.float64(np.sqrt(_COMPONENTS))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_lengths(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == len(PROBES)
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one < np.inf for one in value)
    )


_FITS = {
    **dict.fromkeys((field.name for field in dataclasses.fields(Fingerprint)), _is_text),
    "dimension": _is_count,
    "max_length": _is_count,
    "normalizes": lambda value: isinstance(value, bool),
    "lengths": _are_lengths,
}
