"""Every BGE model as one row of data, and the rules by which a name or a folder is recognised as one of them.

Facts come from the models' cards on https://huggingface.co/BAAI and from https://github.com/FlagOpen/FlagEmbedding;
averages are those of the cards of August (first versions) and September 2023 (v1.5): MTEB over 56 tasks, C-MTEB
over 31.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Kind = Literal["embedder", "reranker", "base"]
Pooling = Literal["cls", "last_token"]

EN_INSTRUCTION = "Represent this sentence for searching relevant passages: "
ZH_INSTRUCTION = "为这个句子生成表示以用于检索相关文章："

_WEB_SEARCH_TASK = "Given a web search query, retrieve relevant passages that answer the query."
_INSTRUCT_TEMPLATE = "<instruct>{task}\n<query>{query}"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known of one model.

    Attributes:
        model_id: Its name on the hub.
        kind: `"embedder"` gives vectors, `"reranker"` scores pairs, `"base"` is only for further training.
        languages: ISO 639-1 codes, or `"multilingual"`, or `"code"`.
        architecture: transformers' `model_type`.
        dimension: Length of its vectors; None for what gives none.
        max_tokens: Tokens per text, special tokens included; None where its authors name no limit.
        pooling: Which hidden state is the vector; L2 normalisation follows.
        query_instruction: Text before each query; `""` is none.
        passage_instruction: Text before each passage; `""` is none.
        query_template: For instruct models, with `{task}` and `{query}`.
        default_task: The task that goes into the template unless another is given.
        task_instructions: For llm-embedder, pairs for query and passage by the name of a task.
        parameters_millions: Size; for decoder models the nominal one.
        licence: SPDX name, or the hub's name for it; None where it was not looked up.
        mteb_average: Published average of the 56 English tasks.
        cmteb_average: Published average of the 31 Chinese tasks.
    """

    model_id: str
    kind: Kind
    languages: tuple[str, ...]
    architecture: str
    dimension: int | None = None
    max_tokens: int | None = None
    pooling: Pooling | None = None
    query_instruction: str = ""
    passage_instruction: str = ""
    query_template: str | None = None
    default_task: str | None = None
    task_instructions: Mapping[str, tuple[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    parameters_millions: int | None = None
    licence: str | None = None
    mteb_average: float | None = None
    cmteb_average: float | None = None

    @property
    def name(self) -> str:
        """The id without its organisation."""
        return self.model_id.rsplit("/", 1)[-1]


def _bert(
    name: str, dimension: int, millions: int, *, mteb: float | None = None, cmteb: float | None = None
) -> ModelSpec:
    language = "en" if "-en" in name else "zh"
    instruction = EN_INSTRUCTION if language == "en" else ZH_INSTRUCTION
    return ModelSpec(
        model_id=f"BAAI/{name}",
        kind="embedder",
        languages=(language,),
        architecture="bert",
        dimension=dimension,
        max_tokens=512,
        pooling="cls",
        query_instruction="" if name.endswith("noinstruct") else instruction,
        parameters_millions=millions,
        licence="mit",
        mteb_average=mteb,
        cmteb_average=cmteb,
    )


def _m3(name: str) -> ModelSpec:
    return ModelSpec(
        model_id=f"BAAI/{name}",
        kind="embedder",
        languages=("multilingual",),
        architecture="xlm-roberta",
        dimension=1024,
        max_tokens=8192,
        pooling="cls",
        parameters_millions=568,
        licence="mit",
    )


def _decoder(
    name: str,
    architecture: str,
    dimension: int,
    *,
    max_tokens: int | None,
    languages: tuple[str, ...],
    template: str = _INSTRUCT_TEMPLATE,
    millions: int | None = None,
    licence: str | None = None,
) -> ModelSpec:
    return ModelSpec(
        model_id=f"BAAI/{name}",
        kind="embedder",
        languages=languages,
        architecture=architecture,
        dimension=dimension,
        max_tokens=max_tokens,
        pooling="last_token",
        query_template=template,
        default_task=_WEB_SEARCH_TASK,
        parameters_millions=millions,
        licence=licence,
    )


def _reranker(
    name: str,
    architecture: str,
    *,
    languages: tuple[str, ...] = ("multilingual",),
    max_tokens: int | None = None,
    millions: int | None = None,
    licence: str | None = None,
) -> ModelSpec:
    return ModelSpec(
        model_id=f"BAAI/{name}",
        kind="reranker",
        languages=languages,
        architecture=architecture,
        max_tokens=max_tokens,
        parameters_millions=millions,
        licence=licence,
    )


MODELS: tuple[ModelSpec, ...] = (
    _bert("bge-small-en", 384, 33, mteb=62.11),
    _bert("bge-base-en", 768, 109, mteb=63.36),
    _bert("bge-large-en", 1024, 335, mteb=63.98),
    _bert("bge-small-en-v1.5", 384, 33, mteb=62.17),
    _bert("bge-base-en-v1.5", 768, 109, mteb=63.55),
    _bert("bge-large-en-v1.5", 1024, 335, mteb=64.23),
    _bert("bge-small-zh", 512, 24, cmteb=58.27),
    _bert("bge-base-zh", 768, 102, cmteb=62.96),
    _bert("bge-large-zh", 1024, 326, cmteb=64.20),
    _bert("bge-small-zh-v1.5", 512, 24, cmteb=57.82),
    _bert("bge-base-zh-v1.5", 768, 102, cmteb=63.13),
    _bert("bge-large-zh-v1.5", 1024, 326, cmteb=64.53),
    _bert("bge-large-zh-noinstruct", 1024, 326, cmteb=63.53),
    _m3("bge-m3"),
    _m3("bge-m3-unsupervised"),
    ModelSpec(
        model_id="BAAI/bge-m3-retromae",
        kind="base",
        languages=("multilingual",),
        architecture="xlm-roberta",
        max_tokens=8192,
        parameters_millions=568,
        licence="mit",
    ),
    ModelSpec(
        model_id="BAAI/llm-embedder",
        kind="embedder",
        languages=("en",),
        architecture="bert",
        dimension=768,
        max_tokens=512,
        pooling="cls",
        query_instruction="Represent this query for retrieving relevant documents: ",
        passage_instruction="Represent this document for retrieval: ",
        # Table 10 of https://arxiv.org/abs/2310.07554.
        task_instructions=MappingProxyType(
            {
                "qa": (
                    "Represent this query for retrieving relevant documents: ",
                    "Represent this document for retrieval: ",
                ),
                "icl": (
                    "Convert this example into vector to look for useful examples: ",
                    "Convert this example into vector for retrieval: ",
                ),
                "chat": (
                    "Embed this dialogue to find useful historical dialogues: ",
                    "Embed this historical dialogue for retrieval: ",
                ),
                "lrlm": (
                    "Embed this text chunk for finding useful historical chunks: ",
                    "Embed this historical text chunk for retrieval: ",
                ),
                "tool": (
                    "Transform this user request for fetching helpful tool descriptions: ",
                    "Transform this tool description for retrieval: ",
                ),
                "convsearch": (
                    "Encode this query and context for searching relevant passages: ",
                    "Encode this passage for retrieval: ",
                ),
            }
        ),
        parameters_millions=109,
        licence="mit",
    ),
    _decoder(
        "bge-multilingual-gemma2",
        "gemma2",
        3584,
        max_tokens=8192,
        languages=("multilingual",),
        millions=9000,
        licence="gemma",
    ),
    _decoder(
        "bge-en-icl",
        "mistral",
        4096,
        max_tokens=32768,
        languages=("en",),
        template=f"{_INSTRUCT_TEMPLATE}\n<response>",
        millions=7000,
        licence="apache-2.0",
    ),
    _decoder("bge-code-v1", "qwen2", 1536, max_tokens=4096, languages=("code", "en", "zh"), millions=1500),
    _decoder(
        "bge-reasoner-embed-qwen3-8b-0923",
        "qwen3",
        4096,
        max_tokens=None,
        languages=("en",),
        template="Instruct: {task}\nQuery: {query}",
        millions=8000,
    ),
    _reranker("bge-reranker-base", "xlm-roberta", languages=("en", "zh"), max_tokens=512, millions=278, licence="mit"),
    _reranker("bge-reranker-large", "xlm-roberta", languages=("en", "zh"), max_tokens=512, millions=560, licence="mit"),
    _reranker("bge-reranker-v2-m3", "xlm-roberta", max_tokens=8192, millions=568, licence="apache-2.0"),
    _reranker("bge-reranker-v2-gemma", "gemma"),
    _reranker("bge-reranker-v2-minicpm-layerwise", "minicpm"),
    _reranker("bge-reranker-v2.5-gemma2-lightweight", "gemma2"),
)

_BY_NAME = {spec.name.lower(): spec for spec in MODELS}
_TRAINER_FOLDER = re.compile(r"checkpoint-\d+")
_ORGANISATION = re.compile(r"^(?:models--.+?--|BAAI(?:_|--))", re.IGNORECASE)


def find_model(name_or_path: str | os.PathLike[str]) -> ModelSpec | None:
    """Recognises a model by its name, or by what its folder is called or records.

    Names are compared whole and without regard to case or organisation, never by a part: `"me/bge-small-en"` is found,
    `"my-bge-small-en"` is not. For a folder its own name comes first; then, since fine-tuned and renamed models say
    what they were made from, config.json, adapter_config.json, tokenizer_config.json and the base_model of README.md.

    Args:
        name_or_path: Hub id, bare name, local folder, snapshot of a hub cache, or a trainer's `checkpoint-*` folder.

    Returns:
        Its row, or None for a model that is no BGE.
    """
    name = os.fspath(name_or_path)
    spec = _by_name(name)
    if spec is not None:
        return spec
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    folders = [folder, folder.resolve()]
    if _TRAINER_FOLDER.fullmatch(folder.resolve().name):
        folders.append(folder.resolve().parent)
    for candidate in folders:
        for text in (str(candidate), *_recorded_names(candidate)):
            spec = _by_name(text)
            if spec is not None:
                return spec
    return None


def _by_name(text: str) -> ModelSpec | None:
    """Reads a name or a path as text, without looking at any file."""
    parts = [part for part in re.split(r"[/\\]+", text) if part not in ("", ".")]
    if len(parts) >= 3 and parts[-2] == "snapshots":
        parts = parts[:-2]
    elif len(parts) >= 2 and _TRAINER_FOLDER.fullmatch(parts[-1]):
        parts = parts[:-1]
    if not parts:
        return None
    return _BY_NAME.get(_ORGANISATION.sub("", parts[-1]).lower())


def _recorded_names(folder: Path) -> Iterator[str]:
    """Yields what a folder's files say that the model is, or was made from."""
    for file, key in (
        ("config.json", "_name_or_path"),
        ("adapter_config.json", "base_model_name_or_path"),
        ("tokenizer_config.json", "name_or_path"),
    ):
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        value = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, str):
            yield value
    yield from _base_models_of_card(folder / "README.md")


def _base_models_of_card(card: Path) -> Iterator[str]:
    """Yields base_model, a text or a list of texts, from the YAML header of a model card."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    entry = re.search(r"^base_model:[ \t]*(.*(?:\n[ \t]*- .*)*)", header[1], re.MULTILINE) if header else None
    for value in re.split(r"\n[ \t]*- |[\[\],]", entry[1]) if entry else ():
        if value.strip(" '\"\n"):
            yield value.strip(" '\"\n")
