"""Trains the stored tokenizers again, each with another vocabulary than before; run it as a module."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.decoder_checkpoints import SPECIAL_TOKENS
from tests.vocabularies import FOLDER, TRAINING_TEXT

_PROMPTS = [
    "<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>q\n<response>r",
    "Instruct: Given a query A and a passage B, determine Predict whether\nQuery: Yes No A: B:",
]


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TRAINING_TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def _bpe(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, "▁"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TRAINING_TEXT, *_PROMPTS], trainer)
    return tokenizer


if __name__ == "__main__":
    made = {"wordpiece": _wordpiece(), "unigram": _unigram()}
    made |= {f"bpe-{kind.__name__}": _bpe(special) for kind, special in SPECIAL_TOKENS.items()}
    for name, tokenizer in made.items():
        tokenizer.save(str(FOLDER / f"{name}.json"))
