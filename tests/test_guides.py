"""The guides say what is true: their code runs as it stands, and the README links to each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3, make_reranker
from tests.decoder_checkpoints import make_embedder

ROOT = Path(__file__).parent.parent
GUIDES = sorted(path.name for path in (ROOT / "docs" / "guides").glob("*.md"))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small models under the names that the guides use; a local folder comes before the hub."""
    make_checkpoint(tmp_path / "BAAI/bge-small-en-v1.5", modules=("cls", "normalize"))
    make_reranker(tmp_path / "BAAI/bge-reranker-v2-m3")
    make_m3(tmp_path / "BAAI/bge-m3")
    make_embedder(tmp_path / "BAAI", "bge-en-icl")
    recorded = make_checkpoint(tmp_path / "our-finetune", modules=("mean",), prompts={"query": "search: "})
    (recorded / "README.md").write_text("---\nbase_model: BAAI/bge-small-en-v1.5\n---\n")
    make_checkpoint(tmp_path / "trained-elsewhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BGE_INTEGRATIONS_CACHE", str(tmp_path / "own-cache"))  # a guide sets it
    return tmp_path


def blocks_of(name: str, language: str = "python") -> list[str]:
    """The code of a guide in one language. Code marked "py" needs an engine, and runs in the tests of that engine."""
    text = (ROOT / "docs" / "guides" / name).read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    return blocks


@pytest.mark.parametrize("name", GUIDES)
def test_code_runs_as_it_stands(name: str, models: Path) -> None:
    blocks = blocks_of(name)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
@pytest.mark.parametrize("name", GUIDES)
def test_the_readme_links_to_it(name: str, readme: str) -> None:
    assert f"](docs/guides/{name})" in (ROOT / readme).read_text(encoding="utf-8")
