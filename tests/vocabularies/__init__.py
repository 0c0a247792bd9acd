"""Small tokenizers, trained once and stored: trainers give another vocabulary in every process.

`python -m tests.vocabularies.train` trains them again.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

FOLDER = Path(__file__).parent

TRAINING_TEXT = [
    "Represent this sentence for searching relevant passages: ",
    "为这个句子生成表示以用于检索相关文章：",
    "The quick brown fox jumps over the lazy dog while the vector store answers questions.",
    "Retrieval with dense vectors finds passages that share a meaning, not only words.",
    "样例数据 样例文档 向量 检索 模型 北京 天气 很好",
    "Emoji and accents: naïve café, 12345 67890, punctuation! (brackets) [more] {curly} #hash @at",
]


def stored_tokenizer(name: str) -> Tokenizer:
    """Returns one of its own: "wordpiece", "unigram", or "bpe-" with the class that it is for."""
    return Tokenizer.from_file(str(FOLDER / f"{name}.json"))
