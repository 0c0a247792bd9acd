"""Every BGE model as one row of data.

The facts come from the model cards on https://huggingface.co/BAAI and from https://github.com/FlagOpen/FlagEmbedding
(research/baai_general_embedding, llm_embedder, llm_dense_retriever, BGE_Coder and llm_reranker). The averages are those
of the cards of August 2023 (first versions) and September 2023 (v1.5). MTEB has 56 tasks, 15 of them retrieval. C-MTEB
has 31 tasks, 8 of them retrieval. The averages of the Chinese v1.5 models count 4 more tasks, each in Chinese: STS22,
AmazonReviewsClassification, MassiveIntentClassification and MassiveScenarioClassification. `scores` has the figures of
single tasks. A fact that could not be verified is `None`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["EN_INSTRUCTION", "MODELS", "YES_OR_NO_PROMPT", "ZH_INSTRUCTION", "Kind", "ModelSpec", "Pooling"]

Kind = Literal["embedder", "reranker", "base"]
Pooling = Literal["cls", "last_token"]

EN_INSTRUCTION = "Represent this sentence for searching relevant passages: "
ZH_INSTRUCTION = "为这个句子生成表示以用于检索相关文章："

_WEB_SEARCH_TASK = "Given a web search query, retrieve relevant passages that answer the query."
# The most general task of bge-code-v1's evaluation (CosQA). Its authors' examples use a narrower task, text to SQL.
_CODE_SEARCH_TASK = "Given a web search query, retrieve relevant code that can help answer the query."
_INSTRUCT_TEMPLATE = "<instruct>{task}\n<query>{query}"
YES_OR_NO_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
_PREDICT_PROMPT = "Predict whether passage B contains an answer to query A."


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The known facts of one model.

    Attributes:
        model_id: Name on the hub.
        kind: `"embedder"` computes vectors, `"reranker"` scores pairs, `"base"` is only for further training.
        languages: ISO 639-1 codes, `"multilingual"`, or `"code"`.
        architecture: `model_type` of config.json.
        dimension: Length of the vectors, or `None` for a model without vectors.
        max_tokens: Tokens per text, special tokens included, or `None` if the authors give no limit.
        pooling: The hidden state that becomes the vector. L2 normalisation follows.
        starts_with_bos: Whether the authors' tokenizer puts a begin token before every text. `None`: not verified.
        ends_with_eos: Whether the authors' tokenizer puts an end token after every text. `None`: not verified.
        query_instruction: Text before each query. `""`: no instruction.
        passage_instruction: Text before each passage. `""`: no instruction.
        query_template: Template of an instruct model, with `{task}` and `{query}`.
        default_task: Task for the template if the user gives no task.
        example_template: Template of one example before the query, with `{task}`, `{query}` and `{response}`. A blank
            line follows each example.
        task_instructions: Instructions for query and passage, by task name (llm-embedder).
        reranker_prompt: Question to a decoder about query A and passage B, or `None` for other models.
        cutoff_layer: The authors' choice of the layer that gives the score, for models that can score after several.
        compress_ratio: The authors' choice of the number of tokens merged into one, for models that merge tokens.
        compress_layers: The authors' choice of the layers after which tokens are merged.
        pad_to_multiple_of: Batch lengths are padded to a multiple of this in the authors' code. Because of the
            attention mask it changes the speed, not the vectors.
        parameters_millions: Number of parameters in millions. For decoders it is rounded or nominal.
        licence: SPDX name in lower case, or the hub's name for it.
        made_from: The BGE model that it was fine-tuned from, if its config.json names that model.
        mteb_average: Published average of the 56 English tasks.
        mteb_retrieval: Published average of the 15 English retrieval tasks (nDCG@10).
        cmteb_average: Published average of the 31 Chinese tasks; of 35 for the v1.5 models.
        cmteb_retrieval: Published average of the 8 Chinese retrieval tasks (nDCG@10).
    """

    model_id: str
    kind: Kind
    languages: tuple[str, ...]
    architecture: str
    dimension: int | None = None
    max_tokens: int | None = None
    pooling: Pooling | None = None
    starts_with_bos: bool | None = None
    ends_with_eos: bool | None = None
    query_instruction: str = ""
    passage_instruction: str = ""
    query_template: str | None = None
    default_task: str | None = None
    example_template: str | None = None
    # A plain dict works with pickle and `dataclasses.asdict`. It has no hash, so it is left out of the row's hash.
    task_instructions: Mapping[str, tuple[str, str]] = field(default_factory=dict, hash=False)
    reranker_prompt: str | None = None
    cutoff_layer: int | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] = ()
    pad_to_multiple_of: int | None = None
    parameters_millions: int | None = None
    licence: str | None = None
    made_from: str | None = None
    mteb_average: float | None = None
    mteb_retrieval: float | None = None
    cmteb_average: float | None = None
    cmteb_retrieval: float | None = None

    @property
    def name(self) -> str:
        """The id without the organisation."""
        return self.model_id.rsplit("/", 1)[-1]


def _bert(name: str, dimension: int, millions: int, *, average: float, retrieval: float) -> ModelSpec:
    english = "-en" in name
    instruction = EN_INSTRUCTION if english else ZH_INSTRUCTION
    return ModelSpec(
        model_id=f"BAAI/{name}",
        kind="embedder",
        languages=("en" if english else "zh",),
        architecture="bert",
        dimension=dimension,
        max_tokens=512,
        pooling="cls",
        query_instruction="" if name.endswith("noinstruct") else instruction,
        parameters_millions=millions,
        licence="mit",
        mteb_average=average if english else None,
        mteb_retrieval=retrieval if english else None,
        cmteb_average=None if english else average,
        cmteb_retrieval=None if english else retrieval,
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
    task: str = _WEB_SEARCH_TASK,
    example_template: str | None = None,
    pad_to_multiple_of: int | None = None,
    starts_with_bos: bool | None = None,
    ends_with_eos: bool | None = None,
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
        starts_with_bos=starts_with_bos,
        ends_with_eos=ends_with_eos,
        query_template=template,
        default_task=task,
        example_template=example_template,
        pad_to_multiple_of=pad_to_multiple_of,
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
    **further: Any,  # noqa: ANN401 - the fields' own types
) -> ModelSpec:
    return ModelSpec(
        model_id=f"BAAI/{name}",
        kind="reranker",
        languages=languages,
        architecture=architecture,
        max_tokens=max_tokens,
        parameters_millions=millions,
        licence=licence,
        **further,
    )


MODELS: tuple[ModelSpec, ...] = (
    _bert("bge-small-en", 384, 33, average=62.11, retrieval=51.82),
    _bert("bge-base-en", 768, 109, average=63.36, retrieval=53.0),
    _bert("bge-large-en", 1024, 335, average=63.98, retrieval=53.9),
    _bert("bge-small-en-v1.5", 384, 33, average=62.17, retrieval=51.68),
    _bert("bge-base-en-v1.5", 768, 109, average=63.55, retrieval=53.25),
    _bert("bge-large-en-v1.5", 1024, 335, average=64.23, retrieval=54.29),
    _bert("bge-small-zh", 512, 24, average=58.27, retrieval=63.07),
    _bert("bge-base-zh", 768, 102, average=62.96, retrieval=69.53),
    _bert("bge-large-zh", 1024, 326, average=64.20, retrieval=71.53),
    _bert("bge-small-zh-v1.5", 512, 24, average=57.82, retrieval=61.77),
    _bert("bge-base-zh-v1.5", 768, 102, average=63.13, retrieval=69.49),
    _bert("bge-large-zh-v1.5", 1024, 326, average=64.53, retrieval=70.46),
    _bert("bge-large-zh-noinstruct", 1024, 326, average=63.53, retrieval=70.55),
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
        # Table 10 of https://arxiv.org/abs/2310.07554, in the spelling of research/llm_embedder/README.md.
        task_instructions={
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
        },
        parameters_millions=109,
        licence="mit",
    ),
    _decoder(
        "bge-multilingual-gemma2",
        "gemma2",
        3584,
        max_tokens=8192,
        languages=("multilingual",),
        pad_to_multiple_of=8,
        # FlagEmbedding's code for training decoders loads the tokenizer with add_eos_token=True.
        ends_with_eos=True,
        millions=9000,
        licence="gemma",
    ),
    _decoder(
        "bge-en-icl",
        "mistral",
        4096,
        max_tokens=32768,
        languages=("en",),
        # get_new_queries in "Usage" of its card leaves room for <s> and </s>.
        starts_with_bos=True,
        ends_with_eos=True,
        template=f"{_INSTRUCT_TEMPLATE}\n<response>",
        # get_detailed_example in "Usage" of https://huggingface.co/BAAI/bge-en-icl.
        example_template=f"{_INSTRUCT_TEMPLATE}\n<response>{{response}}",
        millions=7000,
        licence="apache-2.0",
    ),
    _decoder(
        "bge-code-v1",
        "qwen2",
        1536,
        max_tokens=4096,
        languages=("code", "en", "zh"),
        task=_CODE_SEARCH_TASK,
        pad_to_multiple_of=8,
        millions=1500,
        licence="apache-2.0",
    ),
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
    _reranker(
        "bge-reranker-v2-m3",
        "xlm-roberta",
        max_tokens=8192,
        millions=568,
        licence="apache-2.0",
        made_from="BAAI/bge-m3",
    ),
    # Sizes of the next three models: bytes of the float32 weight files, divided by four.
    _reranker("bge-reranker-v2-gemma", "gemma", millions=2500, licence="apache-2.0", reranker_prompt=YES_OR_NO_PROMPT),
    _reranker(
        "bge-reranker-v2-minicpm-layerwise",
        "minicpm",
        millions=2700,
        licence="apache-2.0",
        reranker_prompt=YES_OR_NO_PROMPT,
        cutoff_layer=28,
    ),
    _reranker(
        "bge-reranker-v2.5-gemma2-lightweight",
        "cost_wise_gemma",
        millions=9200,
        licence="gemma",
        reranker_prompt=_PREDICT_PROMPT,
        cutoff_layer=28,
        compress_ratio=2,
        compress_layers=(24, 40),
    ),
)
