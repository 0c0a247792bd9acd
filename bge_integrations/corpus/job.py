"""Embeds a corpus into a folder of shards. A run that was killed goes on where it was, also on another machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations._optional import require
from bge_integrations.backend.guarantees.files import is_of_a_dead_process, move, own_name
from bge_integrations.calls.progress import Progress
from bge_integrations.catalogue.instructions import Role, read_role
from bge_integrations.corpus.files import Claims, remove, write_file, writing
from bge_integrations.corpus.plan import MANIFEST, OWN_FOLDER, PLAN, Dtype, Plan, Shard, Task, read_json, to_json
from bge_integrations.corpus.shards import ShardFile, shard_bytes, shard_name
from bge_integrations.corpus.source import CorpusSource
from bge_integrations.corpus.survey import LOOKUP, REJECTED, rows_file, survey
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import BgeError, CorpusDataError, CorpusWriteError, NonFiniteOutputError, SettingsError
from bge_integrations.settings import EncoderSettings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ROWS_PER_SHARD", "CorpusReport", "embed_corpus"]

ROWS_PER_SHARD = 16384
_TEXTS_A_SLICE = 4096
"""Texts that are computed and saved together. Which ones they are never changes, so neither do the vectors' bits."""
_WORK, _ROWS = f"{OWN_FOLDER}/work", "rows"
_POLL_S = 1.0


@dataclass(frozen=True)
class CorpusReport:
    """What came of a run.

    Attributes:
        output: The folder.
        rows: Rows in it.
        texts: Different texts in it.
        rejected: Broken rows that were put aside.
        shards: Files in it.
        computed: Texts that this run computed; the others were there already, or other workers computed them.
        tokens: Tokens of the texts that this run computed.
        seconds: Time in which they were computed.
    """

    output: Path
    rows: int
    texts: int
    rejected: int
    shards: int
    computed: int
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {**dataclasses.asdict(self), "output": str(self.output)}


def embed_corpus(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    encoder: BgeEncoder | EncoderSettings | str | os.PathLike[str],
    *,
    role: Role = "document",
    dtype: Dtype = "float32",
    chunk: bool = False,
    text_column: str | Sequence[str] | None = None,
    id_column: str | None = None,
    reject: bool = False,
    worker: tuple[int, int] = (1, 1),
    rows_per_shard: int = ROWS_PER_SHARD,
    show_progress: bool = False,
) -> CorpusReport:
    """Embeds the texts of a corpus into a folder of Parquet files.

    | format | files |
    |---|---|
    | JSON lines | a .jsonl or .ndjson file, or a folder of them |
    | tables | a .csv or .tsv file with a header, or a folder of them |
    | Parquet | a .parquet file, or a folder of them with the same columns |
    | BEIR | a folder with corpus.jsonl |
    | texts | a folder with .txt and .md files, and folders of them; each file is a text |
    | datasets | a folder of the library datasets, as `save_to_disk` writes it |

    Text files may end in .gz. The text of a row is its `title`, a blank and its `text`; or its `page_content`. Its id
    is its `_id` or `id`; rows without one get the file's name and the line. Every different text is computed once. The
    folder has `part-….parquet` with the columns `id`, `text_sha256`, `text`, the input's other columns, and `vector`.
    Its folder `_corpus` has `lookup.sqlite`, by which `StoredVectors` finds texts, perhaps `rejected.jsonl`, and
    `manifest.json`, which is written last.

    A run that was killed goes on where it was if it is started again, and gives the same files byte by byte. At most
    three slices of 4096 texts are computed twice. Workers on several machines can share the folder.

    Args:
        path: The corpus.
        output: The folder to make, or to go on with.
        encoder: The model: an encoder, its settings, or its name.
        role: Role of the texts: `"document"`, `"query"` or `"symmetric"`.
        dtype: Type of the stored numbers: `"float32"` or `"float16"`.
        chunk: Whether texts are cut into passages that the model takes whole. A passage gets the id of its text, `#`
            and a number; the column `document` has the id of the text.
        text_column: The column with texts. Several columns are joined by blanks.
        id_column: The column with ids.
        reject: Whether broken rows are written to `rejected.jsonl`. Otherwise the first one stops the run
            before anything is computed.
        worker: This worker's number from 1, and the number of workers. Each begins with its own share, and then takes
            what others have not begun or have left.
        rows_per_shard: Rows of a file, at most.
        show_progress: Whether to show a progress bar.

    Returns:
        What came of it, when the folder is complete.

    Raises:
        CorpusDataError: The corpus can't be read, a row is broken, or the model fails on a text. The file and the line
            are named.
        CorpusWriteError: The folder can't be written to, for example because the disk is full. What is finished stays.
        SettingsError: The folder was begun with another input, model or option, or an argument is wrong.
        MissingExtraError: pyarrow is not installed.
        BgeError: The model can't be loaded.
    """
    require("pyarrow", extra="corpus")
    number, workers = _checked_worker(worker)
    if dtype not in ("float32", "float16"):
        raise SettingsError(f"dtype={dtype!r} is unknown; choose 'float32' or 'float16'.")
    if rows_per_shard < 1:
        raise SettingsError(f"rows_per_shard={rows_per_shard} must be 1 or more.")
    columns = (text_column,) if isinstance(text_column, str) else text_column
    task = Task(
        role=read_role(role),
        dtype=dtype,
        chunk=chunk,
        text_columns=None if columns is None else tuple(columns),
        id_column=id_column,
        reject=reject,
        rows_per_shard=rows_per_shard,
    )
    source = CorpusSource.of(path, text_columns=task.text_columns, id_column=id_column)
    folder = Path(os.path.expanduser(output)).absolute()
    _require_own(folder)
    opened = _opened(encoder)
    run = _Run(source, task, folder, opened, show_progress=show_progress)
    try:
        return run.run(number, workers)
    finally:
        if opened is not encoder:
            opened.close()


def _opened(encoder: BgeEncoder | EncoderSettings | str | os.PathLike[str]) -> BgeEncoder:
    if isinstance(encoder, BgeEncoder):
        return encoder
    return BgeEncoder.from_settings(EncoderSettings.of(encoder))


def _checked_worker(worker: tuple[int, int]) -> tuple[int, int]:
    number, workers = worker
    if not 1 <= number <= workers:
        raise SettingsError(f"worker={number}/{workers} is no worker; the first of {workers} is 1/{workers}.")
    return number, workers


def _require_own(folder: Path) -> None:
    """Raises `SettingsError` for a folder with files of others."""
    # Looked at in this order, since other workers may begin the same folder now, and make their own folder in it first.
    is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_taken and not (folder / OWN_FOLDER).is_dir():
        raise SettingsError(f"output={str(folder)!r} is there already, and is no folder of a corpus. Name another one.")


class _Run:
    """One worker on one folder."""

    def __init__(
        self, source: CorpusSource, task: Task, folder: Path, encoder: BgeEncoder, *, show_progress: bool
    ) -> None:
        self._source = source
        self._task = task
        self._folder = folder
        self._work = folder / _WORK
        self._encoder = encoder
        self._shows = show_progress
        self._worker: _Worker | None = None

    def run(self, number: int, workers: int) -> CorpusReport:
        """Does what is left to do."""
        if (done := self._read(self._folder / MANIFEST)) is not None:
            self._require_same(done)
            remove(self._work)
            return self._report(done)
        with writing(self._folder):
            self._work.mkdir(parents=True, exist_ok=True)
        self._remove_litter()
        try:
            with Claims(self._work) as claims:
                plan = self._planned(claims)
                if plan is not None:
                    self._do(plan, claims, _order(len(plan.shards), number, workers))
        except (FileNotFoundError, CorpusWriteError):
            # Another worker has finished the folder, and removed what it does not need any more.
            if not (self._folder / MANIFEST).exists():
                raise
        done = self._read(self._folder / MANIFEST)
        if done is None:
            raise CorpusDataError(f"{self._folder} was removed while it was in use.")
        remove(self._work)  # made again, if this worker came at the end
        self._require_same(done)
        return self._report(done)

    def _do(self, plan: Plan, claims: Claims, order: Sequence[int]) -> None:
        settings = self._encoder.settings.replace(batch_tokens=plan.batch_tokens, show_progress=False)
        with BgeEncoder.from_settings(settings) as encoder:
            self._worker = _Worker(plan, self._folder, self._source, encoder, claims)
            self._worker.run(order, shows=self._shows)
        self._finish(plan)

    def _planned(self, claims: Claims) -> Plan | None:
        """Returns the plan; the first worker makes it. `None`: others have finished meanwhile."""
        waiting = threading.Event()
        while True:
            found = self._read(self._work / _ROWS / PLAN)
            if found is not None:
                self._require_same(found)
                return found
            if (self._folder / MANIFEST).exists():
                return None
            if claims.take("claim-survey"):
                break
            waiting.wait(_POLL_S)
        plan = self._surveyed(self._work / f"survey.{own_name()}.tmp")
        claims.give_up("claim-survey")
        return plan

    def _surveyed(self, place: Path) -> Plan:
        remove(place)
        try:
            with writing(place):
                place.mkdir()
            batch_tokens = (
                self._encoder.settings.batch_tokens or self._encoder.backend.scheduler.engines[0].batch_tokens
            )
            survey(self._source, self._task, self._encoder, batch_tokens, place, show_progress=self._shows)
            with writing(self._work):
                try:
                    move(place, self._work / _ROWS)
                except OSError:
                    if not (self._work / _ROWS / PLAN).exists():  # else another worker was faster
                        raise
        finally:
            remove(place)
        found = self._read(self._work / _ROWS / PLAN)
        if found is None:
            raise CorpusDataError(f"{self._work} was removed while it was in use.")
        self._require_same(found)
        return found

    def _require_same(self, plan: Plan) -> None:
        """Raises `SettingsError` if the folder was begun with another input, model or option."""
        plan.require_task(self._task, self._folder)
        plan.require_model(self._encoder, self._folder)
        if self._source.state() == plan.state:
            return
        # Perhaps only a copy with other dates: then its rows are the same.
        with writing(self._folder):
            place = self._folder / OWN_FOLDER / f"check.{own_name()}.tmp"
            remove(place)
            place.mkdir()
        try:
            now = survey(self._source, self._task, self._encoder, plan.batch_tokens, place, show_progress=self._shows)
        finally:
            remove(place)
        if now.content != plan.content:
            raise SettingsError(
                f"{self._source.place} has changed since {self._folder} was begun ({plan.rows:,} rows then, "
                f"{now.rows:,} now). Choose another folder, or restore the former input."
            )

    def _finish(self, plan: Plan) -> None:
        """Writes the manifest, and removes what is not needed any more."""
        shards = []
        for number in range(len(plan.shards)):
            record = read_json(self._work / _record(number))
            if record is None:
                raise FileNotFoundError(self._work / _record(number))
            shards.append(Shard(**record))
        with writing(self._folder):
            for name in (LOOKUP, REJECTED):
                with suppress(FileNotFoundError):  # none, or another worker has moved it
                    move(self._work / _ROWS / name, self._folder / OWN_FOLDER / name)
        complete = dataclasses.replace(plan, shards=tuple(shards))
        write_file(self._folder / MANIFEST, to_json(complete.to_dict()))
        remove(self._work)

    def _read(self, path: Path) -> Plan | None:
        found = read_json(path)
        return None if found is None else Plan.from_dict(found, path)

    def _remove_litter(self) -> None:
        """Removes unfinished files of processes of this machine that were killed."""
        for place in (self._folder, self._folder / OWN_FOLDER, self._work):
            for path in place.glob("*.tmp"):
                if is_of_a_dead_process(".".join(path.name.split(".")[-3:-1])):
                    with suppress(OSError):
                        remove(path)

    def _report(self, plan: Plan) -> CorpusReport:
        worker = self._worker
        return CorpusReport(
            output=self._folder,
            rows=plan.rows,
            texts=plan.texts,
            rejected=plan.rejected,
            shards=len(plan.shards),
            computed=worker.computed if worker else 0,
            tokens=worker.tokens if worker else 0,
            seconds=worker.seconds if worker else 0.0,
        )


def _order(shards: int, number: int, workers: int) -> list[int]:
    """Returns all shards: first the worker's share, then those of the next workers."""
    return sorted(range(shards), key=lambda shard: ((shard - number + 1) % workers, shard))


def _record(number: int) -> str:
    return f"shard-{number:06d}.json"


def _vectors_file(number: int, part: int) -> str:
    return f"vectors-{number:06d}-{part:06d}.npy"


def _claim(number: int) -> str:
    return f"claim-{number:06d}"


@dataclass(frozen=True)
class _Slice:
    """Texts that are computed together.

    Attributes:
        shard: Their shard.
        part: Their number in the shard.
        first: Index of the first one among all texts of the call.
        count: The number of texts.
    """

    shard: int
    part: int
    first: int
    count: int


class _Worker:
    """Computes vectors, and writes shards."""

    def __init__(self, plan: Plan, folder: Path, source: CorpusSource, encoder: BgeEncoder, claims: Claims) -> None:
        self.computed = 0
        self.tokens = 0
        self.seconds = 0.0
        self._plan = plan
        self._folder = folder
        self._work = folder / _WORK
        self._source = source
        self._encoder = encoder
        self._claims = claims
        self._running: deque[_Slice] = deque()
        self._left: dict[int, int] = {}
        self._slices: list[_Slice] = []

    def run(self, order: Iterable[int], *, shows: bool) -> None:
        """Works until all shards are there.

        Raises:
            FileNotFoundError: Another worker has finished the folder, and removed the work.
        """
        left = [number for number in order if not self._is_done(number)]
        todo = sum(self._plan.shards[number].new for number in left)
        tokens, begin = self._encoder.stats().tokens, time.perf_counter()
        try:
            with Progress(todo, shown=shows, title="Embedding") as progress, progress.whole():
                self._work_on(left)
        finally:
            self.seconds = time.perf_counter() - begin
            self.tokens = self._encoder.stats().tokens - tokens

    def _work_on(self, left: list[int]) -> None:
        waiting = threading.Event()
        while left:
            self._compute(left)
            before, left = len(left), [number for number in left if not self._is_done(number)]
            if len(left) == before:  # other workers have them, or texts that they need
                waiting.wait(_POLL_S)
                if not self._work.exists():
                    raise FileNotFoundError(self._work)

    def _is_done(self, number: int) -> bool:
        return (self._folder / shard_name(number)).exists()

    def _compute(self, numbers: Sequence[int]) -> None:
        self._running.clear()
        self._slices = []
        try:
            self._encoder.encode_slices(self._texts(numbers), self._keep, role=self._plan.task.role)
        except BgeError as error:
            index = getattr(error, "index", None)
            if index is None:
                raise
            raise CorpusDataError(f"{self._place_of(index)}: {error}") from error

    def _texts(self, numbers: Sequence[int]) -> Iterator[list[str]]:
        """Yields the slices that are missing, and claims their shards."""
        first = 0
        for number in numbers:
            if self._is_done(number) or not self._claims.take(_claim(number)):
                continue
            if self._is_done(number):  # since it was looked at
                self._claims.give_up(_claim(number))
                continue
            texts = _new_texts(self._rows(number), number)
            parts = [texts[start : start + _TEXTS_A_SLICE] for start in range(0, len(texts), _TEXTS_A_SLICE)]
            missing = [part for part in range(len(parts)) if not (self._work / _vectors_file(number, part)).exists()]
            self._left[number] = len(missing)
            if not missing:
                self._write(number)
            for part in missing:
                one = _Slice(number, part, first, len(parts[part]))
                first += one.count
                self._slices.append(one)
                self._running.append(one)
                yield parts[part]

    def _keep(self, vectors: NDArray[np.float32]) -> None:
        """Saves the vectors of the slice whose turn it is."""
        one = self._running.popleft()
        stored = vectors.astype(self._plan.task.dtype, copy=False)
        if not np.isfinite(stored).all():
            row = one.first + int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
            raise NonFiniteOutputError("The vector has numbers beyond float16. Store it with dtype='float32'.", row)
        content = io.BytesIO()
        np.save(content, stored, allow_pickle=False)
        write_file(self._work / _vectors_file(one.shard, one.part), content.getbuffer())
        self.computed += one.count
        self._left[one.shard] -= 1
        if not self._left[one.shard]:
            self._write(one.shard)

    def _write(self, number: int) -> None:
        """Writes a shard, if the vectors of all its texts are there."""
        rows = self._rows(number)
        vectors = self._vectors(number, rows)
        if vectors is None:
            return
        content = shard_bytes(self._plan, rows, vectors)
        planned = self._plan.shards[number]
        record = dataclasses.replace(planned, size=content.nbytes, sha256=hashlib.sha256(content).hexdigest())
        write_file(self._work / _record(number), to_json(dataclasses.asdict(record)))
        write_file(self._folder / shard_name(number), content)
        del self._left[number]
        for part in range(-(-planned.new // _TEXTS_A_SLICE)):
            remove(self._work / _vectors_file(number, part))
        self._claims.give_up(_claim(number))

    def _vectors(self, number: int, rows: pa.Table) -> NDArray[Any] | None:
        """Returns the vectors of the rows of a shard; `None` if some come from a shard that is not there yet."""
        shards, places = (rows[name].to_numpy() for name in ("source_shard", "source_row"))
        sources = [int(shard) for shard in np.unique(shards) if shard != number]
        if not all(self._is_done(source) for source in sources):
            return None
        parts = -(-self._plan.shards[number].new // _TEXTS_A_SLICE)
        own = [np.load(self._work / _vectors_file(number, part), allow_pickle=False) for part in range(parts)]
        dimension = self._plan.fingerprint.dimension
        found = np.empty((len(shards), dimension), dtype=self._plan.task.dtype)
        is_own = shards == number
        if own:
            found[_is_new(rows, number)] = np.concatenate(own)
        found[is_own] = found[places[is_own]]
        for source in sources:
            wanted = shards == source
            file = ShardFile(self._folder / shard_name(source), dimension, self._plan.task.dtype)
            found[wanted] = file.take(places[wanted].astype(np.int64))
        return found

    def _rows(self, number: int) -> pa.Table:
        import pyarrow as pa

        with pa.OSFile(str(self._work / _ROWS / rows_file(number))) as file:
            return pa.ipc.open_file(file).read_all()

    def _place_of(self, index: int) -> str:
        """Returns the place in the input of a text of the call."""
        one = next(one for one in reversed(self._slices) if one.first <= index)
        rows = self._rows(one.shard)
        new = np.flatnonzero(_is_new(rows, one.shard))
        row = int(new[one.part * _TEXTS_A_SLICE + index - one.first])
        return self._source.where(rows["file"][row].as_py(), rows["line"][row].as_py())


def _is_new(rows: pa.Table, number: int) -> NDArray[np.bool_]:
    shards, places = (rows[name].to_numpy() for name in ("source_shard", "source_row"))
    found: NDArray[np.bool_] = (shards == number) & (places == np.arange(len(places)))
    return found


def _new_texts(rows: pa.Table, number: int) -> list[str]:
    """Returns the texts of a shard that no earlier row has, in their order."""
    import pyarrow as pa

    found: list[str] = rows["text"].filter(pa.array(_is_new(rows, number))).to_pylist()
    return found
