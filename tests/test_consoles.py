"""The command `bge` on consoles of every kind: narrow, without Unicode, full, closed, or none at all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from typer.main import get_command
from typer.testing import CliRunner

from bge_integrations import MODELS
from bge_integrations.cli import app, main
from bge_integrations.cli.models import print_models
from bge_integrations.cli.terminal import open_console, print_fields, print_table, print_text, readable
from tests.test_terminal import EXACT, SLOWER, report_of

COMMANDS = ("models", "info", "demo", "prepare", "bench")
ENCODINGS = ("ascii", "cp437", "cp1252", "latin-1", "cp932", "gbk", "utf-8")
BGE = str(Path(sys.executable).with_name("bge"))


class Output(io.TextIOWrapper):
    """A stream as Python opens it for a console of an encoding, whose bytes can be read."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self) -> str:
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode(self.encoding)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> tuple[object, str, str]:
    """Runs the command in this process, with streams of an encoding; returns its status, its output and its errors."""
    out, err = Output(encoding), Output(encoding)
    monkeypatch.setattr(sys, "argv", ["bge", *arguments])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr("warnings.showwarning", None)  # which the command replaces
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, out.text(), err.text()


@pytest.fixture(autouse=True)
def environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what the command sets for its own process."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv("COLUMNS", raising=False)


class TestEncodings:
    @pytest.mark.parametrize(
        ("encoding", "shown"),
        [
            ("ascii", "- ... x -> ' \" +-+|"),
            ("latin-1", "- ... \xd7 -> ' \" +-+|"),
            ("cp437", "- ... x -> ' \" ┌─┐│"),
            ("utf-8", "\u2013 … \xd7 → \u2019 \u201c ┌─┐│"),
        ],
    )
    def test_typographic_characters_become_similar_ones(self, encoding: str, shown: str) -> None:
        assert readable("\u2013 … \xd7 → \u2019 \u201c ┌─┐│", encoding) == shown

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_nothing_is_lost(self, encoding: str) -> None:
        text = "模型 é \U0001f43c \udce6"
        shown = readable(text, encoding)
        shown.encode(encoding)
        assert shown.encode("utf-8").decode("unicode_escape" if encoding == "ascii" else "utf-8")
        for character in text:
            assert character in shown or character.encode("ascii", "backslashreplace").decode() in shown

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_tables_texts_and_reports_are_printed(self, encoding: str) -> None:
        from bge_integrations.cli.bench import print_report

        out = Output(encoding)
        console = Console(file=out, width=40)
        print_text(console, "模型 – loading …", start="✓ ", style="red")
        print_fields(console, {"größe": "3 × 4"})
        table = Table()
        table.add_column("模型")
        table.add_row("–")
        print_table(console, table)
        print_report(report_of(EXACT, SLOWER), console)
        print_models(console, MODELS)
        lines = out.text().splitlines()
        assert lines[0].startswith(readable("✓ 模型 – loading"[:5], encoding))
        assert not [line for line in lines if r"\u20" in line or r"\u25" in line]

    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_is_printed(self, command: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        code, out, err = run(command, "--help", monkeypatch=monkeypatch, encoding=encoding)
        assert (code, err) == (0, "")
        assert f" {command} [OPTIONS]" in out.splitlines()[0]

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_json_can_be_read_again(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        code, out, _ = run("models", "--json", monkeypatch=monkeypatch, encoding=encoding)
        assert code == 0
        found = {row["model_id"]: row["query_instruction"] for row in json.loads(out)}
        assert found == {spec.model_id: spec.query_instruction for spec in MODELS}

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_errors_with_chinese_names_are_printed(
        self, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ("bench", f"{tmp_path}/没有 – 模型")
        code, out, err = run(*arguments, monkeypatch=monkeypatch, encoding=encoding)
        assert (code, out) == (1, "")
        assert "".join(readable(f"bge: There is no folder '{tmp_path}/没有 – 模型'", encoding).split()) in "".join(
            err.split()
        )

    def test_a_prepared_folder_with_a_chinese_name_is_reported_in_an_ascii_locale(
        self, bge_small_en: Path, tmp_path: Path
    ) -> None:
        """A Python that is not told otherwise takes UTF-8 for file names there, and so do the libraries below."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUTF8", "LANG")}
        arguments = [BGE, "prepare", str(bge_small_en), "-o", "模型 é"]
        done = subprocess.run(
            arguments,
            cwd=tmp_path,
            env={**environment, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            encoding="ascii",
        )
        assert done.returncode == 0, done.stderr
        assert r"\u6a21\u578b \xe9: bge-small-en-v1.5 in float32" in done.stdout
        assert (tmp_path / "模型 é" / "bge.json").is_file()

    def test_a_locale_in_which_file_names_can_not_be_read_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
        name = str(tmp_path / os.fsdecode(b"\xe6\xa8\xa1\xff"))
        code, _, err = run("bench", name, monkeypatch=monkeypatch, encoding="ascii")
        assert code == 1
        assert "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8 before Python starts" in " ".join(err.split())


class TestWidths:
    @pytest.mark.parametrize("columns", ["0", "-5", "", "wide", "²", "1e3", "0x50"])
    def test_what_is_no_width_counts_as_none(self, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("LINES", columns)
        code, out, err = run("models", monkeypatch=monkeypatch)
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()[1 : len(MODELS) + 1]] == [spec.model_id for spec in MODELS]

    @pytest.mark.parametrize("columns", [1, 10, 40, 80, 200, 10**9, 10**30])
    @pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["plain", "dumb", "colour"])
    def test_no_word_is_lost_at_any_width(
        self, columns: int, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code, out, err = run("models", monkeypatch=monkeypatch)
        assert (code, err) == (0, "")
        words = out.split()
        for spec in MODELS:
            assert spec.model_id in words
            assert set((spec.query_instruction or "").split()[1:-1]) <= set(words)

    @pytest.mark.parametrize("columns", ["0", "1", "10", "40", "200", "wide"])
    def test_help_is_whole_at_any_width(self, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        root = get_command(app)
        commands = getattr(root, "commands")  # noqa: B009 - of a group, which typer doesn't say that it returns
        for name in COMMANDS:
            shown = CliRunner().invoke(app, [name, "--help"], prog_name="bge").stdout
            for parameter in commands[name].params:
                assert "".join((parameter.help or "").split()) in "".join(shown.split()) or all(
                    word in shown for word in (parameter.help or "").split()
                )

    def test_a_terminal_is_as_wide_as_it_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((63, 20)))
        assert open_console().width == 63
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
        assert open_console().width == 80


class TestOutputsThatEnd:
    @pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"], ["--version"]])
    def test_a_closed_pipe_ends_it_as_it_ends_other_tools(self, arguments: list[str]) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run([BGE, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True)
        finally:
            os.close(writing)
        assert (done.returncode, done.stderr) == (141 if os.name == "posix" else 1, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    @pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"]])
    def test_a_full_disk_is_one_message(self, arguments: list[str]) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run([BGE, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr == "bge: The output can't be written: No space left on device.\n"

    @pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["models", "--kind", "x"], ["--version"]])
    def test_a_process_without_output_runs_all_the_same(
        self, arguments: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["bge", *arguments])
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, "stderr", None)
        monkeypatch.setattr("warnings.showwarning", None)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == (2 if "--kind" in arguments else 0)

    def test_an_error_of_another_file_is_not_taken_for_one_of_the_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*_: object) -> None:
            raise OSError(28, "No space left on device", "/elsewhere")

        monkeypatch.setattr(sys.modules["bge_integrations.cli.app"], "print_models", failing)
        monkeypatch.setattr("warnings.showwarning", None)
        monkeypatch.setattr(sys, "argv", ["bge", "models"])
        with pytest.raises(OSError, match="/elsewhere"):
            main()
