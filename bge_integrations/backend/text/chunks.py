"""Token counts for text splitters, so that the chunks that they join from pieces are never truncated.

A splitter takes the sum of its pieces as the length of a chunk. But a piece may have fewer tokens alone than inside a
chunk: SentencePiece has "▁Retrieval" for the start of a word, and may need "Re", "tri" and "eval" for the same letters
after a comma. LlamaIndex's SentenceSplitter made 4,449 chunks with simple counts, with a Unigram tokenizer trained on
Python's standard library and odd texts; 255 of them were too long.

So a piece counts as its largest number of tokens, alone or after other text. This is why the sum is an upper bound:

- Pieces joined between words: words are tokenised one by one, so nothing changes. For WordPiece, each punctuation mark
  and each Chinese character is a word.
- Pieces joined between any two characters: a piece of one character counts as the number of its normalised characters,
  and no token has less than one character. `ChunkRuler.size` keeps extra room for the marks of words.
- A piece after punctuation, for SentencePiece: it is measured alone and after a comma. For other positions there is no
  proof, but a test on many texts: a longer text gives the tokenizer more choices, and it takes the likelier one, which
  has fewer tokens.
- A piece after an instruction that ends within a word: it is also measured after the instruction. Splitters remove
  white space at the start of a chunk, so this measurement removes it too.

There is no guarantee for a user's own separators that cut words between letters into pieces of several characters.
"""

from __future__ import annotations

from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.errors import SettingsError

# All tokenizers know the comma, and hardly any has a token that continues after it.
_PUNCTUATION = ","
# LlamaIndex's separator between metadata and text.
_LINE_BREAKS = "\n\n"


class ChunkRuler:
    """Counts the tokens of pieces of documents for splitters, and computes the room of a chunk."""

    def __init__(self, tokenizer: TextTokenizer, instruction: Instruction, max_length: int) -> None:
        """Takes the text around a chunk during encoding.

        Args:
            tokenizer: The model's tokenizer.
            instruction: The text around each document.
            max_length: Maximum number of tokens per text, special tokens and instruction included.
        """
        self._tokenizer = tokenizer
        self._instruction = instruction
        self._max_length = max_length
        # Whether the last word of the instruction continues in the text.
        self._goes_on = bool(instruction.prefix) and not instruction.prefix[-1].isspace()

    @property
    def size(self) -> int:
        """Maximum size of a chunk, as counted by `tokens`.

        It leaves room for special tokens, the instruction and line breaks (which most tokenizers drop). It also leaves
        room for two marks of a word's start, which pieces of one character do not count. Such pieces come from words
        longer than a chunk, so a chunk has at most the end of one such word and the start of another.

        Raises:
            SettingsError: There is no room for text.
        """
        taken = self._tokenizer.special_tokens + 2 * self._tokenizer.word_marks
        taken += sum(len(self._tokenizer.content(text)) for text in (self._instruction.prefix, _LINE_BREAKS))
        taken += len(self.tokens(self._instruction.suffix))
        if taken >= self._max_length:
            raise SettingsError(
                f"max_length={self._max_length} leaves no room for chunks: special tokens and the document instruction "
                f"take {taken} tokens. Set max_length to at least {taken + 1}, or give a shorter document_instruction."
            )
        return self._max_length - taken

    def tokens(self, piece: str) -> list[int]:
        """Returns as many ids as the piece has tokens at most in any chunk. Some ids may be padding."""
        alone = self._tokenizer.content(piece)
        if not piece:
            return alone
        starts_a_word = len(piece) > 1 and piece[0] == " "
        behind = [] if starts_a_word else [self._behind(_PUNCTUATION, piece)]
        if self._goes_on:
            behind.append(self._behind(self._instruction.prefix, piece.lstrip()))
        if len(piece) > 1:
            return max([alone, *behind], key=len)
        # Alone, a character counts twice with SentencePiece's mark. This would halve Chinese chunks.
        ids = max(*behind, [] if self._tokenizer.word_marks else alone, key=len)
        return ids + [self._tokenizer.pad_id] * (self._tokenizer.symbols(piece) - len(ids))

    def _behind(self, lead: str, piece: str) -> list[int]:
        """Returns the ids that a piece adds after the text `lead`."""
        return self._tokenizer.content(lead + piece)[len(self._tokenizer.content(lead)) :]
