"""What the commands print on terminals of several widths: no word is broken, no figure is lost."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from bge_integrations.catalogue import MODELS
from bge_integrations.cli.bench import BenchReport, Combination, Measured, print_report, recommend
from bge_integrations.cli.information import print_information
from bge_integrations.cli.models import print_models
from bge_integrations.cli.terminal import open_console, print_fields, print_table, print_text
from bge_integrations.cli.wording import in_options
from bge_integrations.settings import EngineName, Precision

PATH = "/models/of a team/" + "a-very-long-name/" * 6
MESSAGE = f"There is no folder {PATH.replace(' ', '_')} here; run `hf download BAAI/bge-small-en-v1.5` where it is."


def console_of(width: int) -> Console:
    return Console(file=io.StringIO(), width=width)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_text_is_broken_at_spaces_only(width: int) -> None:
    console = console_of(width)
    print_text(console, MESSAGE, start="bge: ", margin="  ")
    lines = printed(console).splitlines()
    assert " ".join(line.strip() for line in lines) == f"bge: {MESSAGE}"
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert "`hf download BAAI/bge-small-en-v1.5`" in printed(console)


def test_chinese_takes_two_columns_a_letter() -> None:
    console = console_of(12)
    print_text(console, "北京 上海 广州")
    assert printed(console).splitlines() == ["北京 上海", "广州"]


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    console = console_of(80)
    print_text(console, "pip install 'bge-integrations[openvino]'")
    print_fields(console, {"[bold]": "[/bold]"})
    assert printed(console).splitlines() == ["pip install 'bge-integrations[openvino]'", "[bold]  [/bold]"]


def test_values_stand_beside_their_names() -> None:
    console = console_of(20)
    print_fields(console, {"a": "one two three four", "longer": "five"})
    assert printed(console).splitlines() == ["a       one two", "        three four", "longer  five"]


def test_a_table_loses_nothing_where_the_terminal_is_too_narrow() -> None:
    table = Table()
    for column in ("engine", "documents/s", "tokens/s"):
        table.add_column(column)
    table.add_row("sentence-transformers", "1,234.5", "1,234,567")
    console = console_of(20)
    print_table(console, table)
    for word in ("engine", "documents/s", "tokens/s", "sentence-transformers", "1,234.5", "1,234,567"):
        assert word in printed(console)
    assert "…" not in printed(console)


def test_lines_are_not_broken_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_text(open_console(), MESSAGE * 5)
    assert capsys.readouterr().out == f"{MESSAGE * 5}\n"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_models_are_listed_with_every_figure(width: int) -> None:
    console = console_of(width)
    print_models(console, MODELS)
    output = printed(console)
    assert max(map(cell_len, output.splitlines())) <= width
    lines = {line.split()[0]: line.split() for line in output.splitlines() if line.startswith("BAAI/")}
    assert set(lines) == {spec.model_id for spec in MODELS}
    for spec in MODELS:
        for figure in (spec.dimension, spec.max_tokens, *spec.languages):
            assert figure is None or str(figure) in [word.rstrip(",") for word in lines[spec.model_id]]
    assert "62.17" in lines["BAAI/bge-small-en-v1.5"]


def measured(engine: EngineName, precision: Precision, documents_per_s: float) -> Measured:
    return Measured(
        combination=Combination(engine, precision),
        texts=16,
        documents_per_s=documents_per_s,
        tokens_per_s=100 * documents_per_s,
        share_of_limit=0.61,
        slowest_documents_per_s=documents_per_s / 1.1,
        fastest_documents_per_s=documents_per_s * 1.1,
        query_p50_ms=12345.6,
        query_p95_ms=23456.7,
        mean_cosine=0.999123,
        least_cosine=0.987654,
    )


def report_of(*found: Measured, not_loaded: tuple[Combination, ...] = ()) -> BenchReport:
    exact, lossy = recommend(found)
    return BenchReport(
        model="BAAI/bge-small-en-v1.5",
        device="cpu",
        threads=3,
        rounds=5,
        seconds=120.0,
        mean_tokens=51.0,
        measured=found,
        left_out={one.keywords: "no time left to load it; allow more than 120 s" for one in not_loaded},
        exact=exact,
        lossy=lossy,
        is_noisy=False,
        not_loaded=not_loaded,
    )


EXACT = measured("sentence-transformers", "float32", 12345.6)
SLOWER = measured("torch", "bfloat16", 5.0)
FASTER = measured("openvino", "int8", 23456.7)
UNKNOWN = (Combination("openvino", "int8"),)


class TestBenchReport:
    @pytest.mark.parametrize("width", [80, 100, 120])
    def test_figures_are_whole_and_explained(self, width: int) -> None:
        console = console_of(width)
        print_report(report_of(EXACT, SLOWER, not_loaded=UNKNOWN), console)
        output = printed(console)
        assert max(map(len, output.splitlines())) <= width
        for figure in ("12,345.6", "1,234,560", "12345.6", "23456.7", "1.21", "61%", "0.999123", "0.987654"):
            assert figure in output
        assert re.search(r"^spread: the fastest round over the slowest", output, re.MULTILINE)

    @pytest.mark.parametrize(
        ("report", "said"),
        [
            (report_of(EXACT, SLOWER), "none is faster than the exact one"),
            (report_of(EXACT, SLOWER, not_loaded=UNKNOWN), "none is faster than the exact one (of those measured)"),
            (report_of(EXACT, not_loaded=UNKNOWN), "not known, there was no time to load any"),
            (report_of(EXACT, FASTER), 'engine="openvino", precision="int8" (mean cosine 0.999123)'),
            (report_of(EXACT), "none ran"),
        ],
        ids=["all slower", "some not loaded", "none loaded", "one faster", "none there"],
    )
    def test_what_was_not_measured_is_not_said_to_be_slower(self, report: BenchReport, said: str) -> None:
        console = console_of(120)
        print_report(report, console)
        [line] = [line for line in printed(console).splitlines() if line.startswith("fastest lossy: ")]
        assert line == f"fastest lossy: {said}"

    def test_an_exact_one_that_was_not_loaded_may_be_faster_too(self) -> None:
        console = console_of(120)
        print_report(report_of(EXACT, not_loaded=(Combination("openvino", "float32"),)), console)
        assert f"fastest exact: {EXACT.combination.keywords} (of those measured)" in printed(console)


DESCRIBED = {
    **{name: {"python": "3.12"} for name in ("versions", "devices", "engines")},
    "machine": {"system": "Windows-11", "processor": "x", "cores": 8, "memory_gib": 15.5},
    "threads": {"usable cores": 8, "OMP_NUM_THREADS": 2},
    "temporary_files": {"folder": None, "free_gib": None, "problem": "no folder can be written to"},
    "caches": [],
    "graph_cache": {"folder": "/cache/graphs", "exists": False, "entries": 0, "mib": 0.0},
}


@pytest.mark.parametrize(
    ("graphs", "said"),
    [
        ({"folder": "/cache/graphs", "exists": True, "entries": 3, "mib": 120.4}, ["entries  3", "size     120 MiB"]),
        ({"folder": "/cache/graphs", "exists": False, "entries": 0, "mib": 0.0}, ["entries  no such folder yet"]),
    ],
    ids=["with graphs", "none yet"],
)
def test_information_shows_the_graph_cache(graphs: dict[str, object], said: list[str]) -> None:
    console = console_of(80)
    print_information(console, {**DESCRIBED, "graph_cache": graphs})
    lines = [line.strip() for line in printed(console).splitlines()]
    assert lines[lines.index("graph cache") + 1 :] == ["folder   /cache/graphs", *said]


def test_information_shows_what_limits_threads_and_where_links_and_temporary_files_fail() -> None:
    console = console_of(140)
    cache = {"exists": True, "models_mib": {"BAAI/bge-m3": 2200.4}}
    caches = [
        {**cache, "folder": "/linked", "symlinks": True},
        {**cache, "folder": "/copied", "symlinks": False},
        {**cache, "folder": "/read-only", "symlinks": None},
    ]
    print_information(console, {**DESCRIBED, "caches": caches})
    lines = [line.strip() for line in printed(console).splitlines()]
    for line in (
        "threads          2, the least of usable cores (8), OMP_NUM_THREADS (2)",
        "memory           15.5 GiB",
        "temporary files  none: no folder can be written to",
        "/linked     BAAI/bge-m3 (2,200 MiB)",
        "/copied     BAAI/bge-m3 (2,200 MiB); no symlinks: files are copied",
        "/read-only  BAAI/bge-m3 (2,200 MiB); can't be written to",
    ):
        assert line in lines


OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("cache_folder", "precision", "revision", "allow_pickle_weights")
    },
    "model_name": "MODEL",
}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("giving its path as model_name; or set cache_folder.", "giving its path as MODEL; or set --cache-folder."),
        ("precision='int4' can't be made; choose 'int8'.", "--precision int4 can't be made; choose 'int8'."),
        ('set precision="int8", or none', "set --precision int8, or none"),
        ("pass allow_pickle_weights=True.", "pass --allow-pickle-weights."),
        ("leave revision=None for main.", "leave out --revision for main."),
        ("precision='a b' is unknown", "--precision 'a b' is unknown"),
        ("pass token=… or log in", "pass HF_TOKEN=… or log in"),
        ("the precision of a token", "the precision of a token"),
        (
            "no model at revision 'x'; my_model_name, x.cache_folder",
            "no model at revision 'x'; my_model_name, x.cache_folder",
        ),
        ("normalize=True is not for the command", "normalize=True is not for the command"),
    ],
)
def test_settings_become_the_options_of_the_command(message: str, said: str) -> None:
    assert in_options(message, OPTIONS) == said
