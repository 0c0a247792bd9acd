"""How long text is for a splitter, so that the chunks that it joins from pieces are never cut.

Splitters take a chunk to be as long as its pieces together, but a piece may take fewer tokens alone than in its place:
SentencePiece has "▁Retrieval" for the start of a word, and may need "Re", "tri" and "eval" for the same letters behind
a comma. Of 4,449 chunks that LlamaIndex's SentenceSplitter filled so, with a Unigram tokenizer learnt from Python's
standard library and odd texts, 255 were too long.

So a piece counts as the most tokens that it takes, alone or behind something. Why the sum is then enough:

- Between words nothing changes: they are tokenised one by one. For WordPiece, punctuation and Chinese characters are
  words of their own.
- Between any two characters: a piece of one character counts as all the characters that normalisation makes of it, and
  no token has less than one. The marks of words have room of their own, see `ChunkRuler.size`.
- Behind punctuation, for SentencePiece: both ways are measured. What lies between them is not proven, but tested on
  many texts, since a longer whole gives the tokenizer more choices, of which it takes the likelier, with fewer tokens.
- Behind an instruction that ends within a word: that is one of the things that a piece is measured behind, without the
  white space before it, which splitters take off the start of a chunk.

Nothing is promised for separators of one's own that cut words between letters into pieces of several characters.
"""

from __future__ import annotations

from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.errors import SettingsError

# Every tokenizer knows it, and hardly any has a token that goes on behind it.
_PUNCTUATION = ","
# What LlamaIndex puts between metadata and text.
_LINE_BREAKS = "\n\n"


class ChunkRuler:
    """Measures pieces of documents for splitters, and says how much room a chunk has."""

    def __init__(self, tokenizer: TextTokenizer, instruction: Instruction, max_length: int) -> None:
        """Takes what surrounds a chunk when it is encoded.

        Args:
            tokenizer: The model's.
            instruction: What goes around each document.
            max_length: Tokens per text, special tokens and instruction included.
        """
        self._tokenizer = tokenizer
        self._instruction = instruction
        self._max_length = max_length
        # Its last word goes on in the text.
        self._goes_on = bool(instruction.prefix) and not instruction.prefix[-1].isspace()

    @property
    def size(self) -> int:
        """Tokens that a chunk may have by `tokens`.

        Room is kept for special tokens, instruction and line breaks (which most tokenizers drop), and for the two marks
        of a word's start that pieces of one character don't count: such pieces come from words longer than a chunk, and
        only the end of one and the start of another fit into one chunk.

        Raises:
            SettingsError: There is no room at all.
        """
        taken = self._tokenizer.special_tokens + 2 * self._tokenizer.word_marks
        taken += sum(len(self._tokenizer.content(text)) for text in (self._instruction.prefix, _LINE_BREAKS))
        taken += len(self.tokens(self._instruction.suffix))
        if taken >= self._max_length:
            raise SettingsError(
                f"max_length={self._max_length} leaves no room for chunks beside the {taken} tokens that go to special "
                f"tokens and the document instruction; give at least {taken + 1}, or a shorter document_instruction."
            )
        return self._max_length - taken

    def tokens(self, piece: str) -> list[int]:
        """Returns the ids of a piece, as many as it takes at most in any chunk; some may be padding."""
        alone = self._tokenizer.content(piece)
        if not piece:
            return alone
        starts_a_word = len(piece) > 1 and piece[0] == " "
        behind = [] if starts_a_word else [self._behind(_PUNCTUATION, piece)]
        if self._goes_on:
            behind.append(self._behind(self._instruction.prefix, piece.lstrip()))
        if len(piece) > 1:
            return max([alone, *behind], key=len)
        # Alone, a character behind SentencePiece's mark counts twice, which would halve chunks of Chinese.
        ids = max(*behind, [] if self._tokenizer.word_marks else alone, key=len)
        return ids + [self._tokenizer.pad_id] * (self._tokenizer.symbols(piece) - len(ids))

    def _behind(self, lead: str, piece: str) -> list[int]:
        """Returns the ids that a piece adds to what stands before it."""
        return self._tokenizer.content(lead + piece)[len(self._tokenizer.content(lead)) :]
