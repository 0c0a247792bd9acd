"""Which words are masked for RetroMAE's encoder, and what each position of its decoder sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from bge_integrations.errors import UnsupportedModelError
from bge_integrations.training.retromae.masks import chosen_tokens, replaced_ids, visible_tokens
from bge_integrations.training.retromae.words import WordTable
from tests.checkpoints import Architecture, make_tokenizer
from tests.vocabularies import stored_tokenizer

Ids = NDArray[np.int64]


def words_of(tokenizer: object, text: str) -> list[tuple[list[str], int]]:
    """The tokens of each word of a text, in their order, with the word's number."""
    table = WordTable.of(tokenizer, "it")
    found = tokenizer([text])["input_ids"]  # type: ignore[operator]
    ids = np.array(found)
    numbers = table.word_numbers(ids, np.ones(ids.shape, dtype=bool))[0]
    tokens = tokenizer.convert_ids_to_tokens(found[0])  # type: ignore[attr-defined]
    words: list[tuple[list[str], int]] = []
    for token, number in zip(tokens, numbers.tolist(), strict=True):
        if words and number and words[-1][1] == number:
            words[-1][0].append(token)
        else:
            words.append(([token], number))
    return words


class TestWords:
    def test_of_bert_are_pieces_joined_and_chinese_characters_singly(self) -> None:
        found = words_of(make_tokenizer("bert", 64), "quick foxes, 北京 [MASK]Ж")
        assert found == [
            (["[CLS]"], 0),
            (["quick"], 1),
            (["fox", "##es"], 2),
            ([","], 3),
            (["北"], 4),
            (["京"], 5),
            (["[MASK]"], 0),
            (["[UNK]"], 6),
            (["[SEP]"], 0),
        ]

    def test_of_xlm_roberta_begin_at_blanks_punctuation_and_chinese_characters(self) -> None:
        found = words_of(make_tokenizer("xlm-roberta", 64), "the foxes, naïve 北京s<mask>e")
        assert found == [
            (["<s>"], 0),
            (["▁th", "e"], 1),
            (["▁fo", "x", "es"], 2),
            ([","], 3),
            (["▁n", "a", "ï", "ve"], 4),
            (["▁"], 5),
            (["北"], 6),
            (["京"], 7),
            (["s"], 8),
            (["<mask>"], 0),
            (["▁", "e"], 9),
            (["</s>"], 0),
        ]

    def test_real_vocabularies_have_a_place_for_every_id(self, minilm: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(minilm)
        table = WordTable.of(tokenizer, "it")
        assert len(table.begins) == tokenizer.vocab_size == 30522
        assert set(np.flatnonzero(table.is_fixed)) == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        assert table.is_fixed[[tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]].all()
        assert set(table.replacements) == set(range(30522)) - set(tokenizer.all_special_ids)

    def test_padding_belongs_to_no_word(self) -> None:
        tokenizer = make_tokenizer("bert", 64)
        ids = np.array([tokenizer("the fox")["input_ids"] + [tokenizer.pad_token_id] * 3])
        numbers = WordTable.of(tokenizer, "it").word_numbers(ids, np.arange(7) < np.array([[4]]))
        assert numbers.tolist() == [[0, 1, 2, 0, 0, 0, 0]]

    def test_other_tokenizers_are_refused(self) -> None:
        from transformers import PreTrainedTokenizerFast

        without = PreTrainedTokenizerFast(tokenizer_object=stored_tokenizer("wordpiece"), pad_token="[PAD]")  # type: ignore[no-untyped-call]
        with pytest.raises(UnsupportedModelError, match="The tokenizer of this one has no mask token"):
            WordTable.of(without, "this one")
        other = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=stored_tokenizer("bpe-Qwen2Tokenizer"), mask_token="<|endoftext|>"
        )
        with pytest.raises(UnsupportedModelError, match="neither as BERT"):
            WordTable.of(other, "this one")


def random_words(texts: int, longest: int, seed: int = 0) -> tuple[Ids, NDArray[np.int64]]:
    """Words of 1 to 4 tokens, with an unmaskable token at both ends and sometimes inside; and the lengths."""
    draws = np.random.default_rng(seed)
    words = np.zeros((texts, longest), dtype=np.int64)
    lengths = draws.integers(longest // 2, longest + 1, size=texts)
    lengths[0] = longest
    for text in range(texts):
        place, number = 1, 0
        while place < lengths[text] - 1:
            if draws.random() < 0.05:
                place += 1
                continue
            number += 1
            size = min(int(draws.integers(1, 5)), int(lengths[text]) - 1 - place)
            words[text, place : place + size] = number
            place += size
    return words, lengths


class TestChosen:
    def test_they_are_those_of_the_plain_procedure(self) -> None:
        """Shuffle the words, take one after the other, and pass over each that would be too much."""
        words, lengths = random_words(50, 40)
        found = chosen_tokens(words, lengths, 0.3, np.random.default_rng(7))
        keys = np.random.default_rng(7).random((50, int(words.max()) + 1))
        for text in range(50):
            limit = max(1, round(0.3 * int(lengths[text])))
            taken: list[int] = []
            for number in sorted(range(keys.shape[1]), key=lambda one, text=text: float(keys[text, one])):  # type: ignore[misc]
                places = [place for place in range(40) if words[text, place] == number and number]
                if len(taken) + len(places) <= limit:
                    taken += places
            assert np.flatnonzero(found[text]).tolist() == sorted(taken)

    @pytest.mark.parametrize("rate", [0.15, 0.3])
    def test_as_many_as_wanted_never_more_and_whole_words(self, rate: float) -> None:
        words, lengths = random_words(400, 64, seed=1)
        found = chosen_tokens(words, lengths, rate, np.random.default_rng(0))
        limits = np.rint(rate * lengths)
        counts = found.sum(1)
        assert (counts <= limits).all()
        assert counts.sum() / lengths.sum() == pytest.approx(rate, abs=0.01)
        assert not found[words == 0].any()
        for text in range(400):
            for number in range(1, words[text].max() + 1):
                assert len(set(found[text, words[text] == number])) == 1

    def test_each_word_has_the_same_chance_and_words_are_independent(self) -> None:
        words = np.tile(np.array([0, *range(1, 21), 0]), (20_000, 1))
        found = chosen_tokens(words, np.full(20_000, 22), 0.3, np.random.default_rng(0))
        chances = found[:, 1:-1].mean(0)
        assert (found.sum(1) == 7).all()
        assert np.abs(chances - 7 / 20).max() < 0.015
        together = (found[:, 1:-1].T.astype(float) @ found[:, 1:-1]) / 20_000
        apart = ~np.eye(20, dtype=bool)
        assert np.abs(together[apart] - 7 * 6 / (20 * 19)).max() < 0.015

    def test_a_short_text_has_one_unless_its_words_are_longer(self) -> None:
        words = np.array([[0, 1, 0, 0], [0, 1, 1, 0]])
        found = chosen_tokens(words, np.array([3, 4]), 0.3, np.random.default_rng(0))
        assert found.tolist() == [[False, True, False, False], [False] * 4]


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_of_chosen_tokens_80_percent_are_masked_and_10_are_others(architecture: Architecture) -> None:
    tokenizer = make_tokenizer(architecture, 64)
    table = WordTable.of(tokenizer, "it")
    draws = np.random.default_rng(0)
    ids = draws.choice(table.replacements, size=(400, 100))
    chosen = draws.random(ids.shape) < 0.5
    found = replaced_ids(ids, chosen, table, np.random.default_rng(1))
    assert (found[~chosen] == ids[~chosen]).all()
    masked, same = found[chosen] == tokenizer.mask_token_id, found[chosen] == ids[chosen]
    others = found[chosen][~masked & ~same]
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert same.mean() == pytest.approx(0.1 + 0.1 / len(table.replacements), abs=0.01)
    assert not set(others.tolist()) & set(tokenizer.all_special_ids)
    assert set(others.tolist()) == set(table.replacements.tolist())


@pytest.fixture(scope="module")
def made() -> tuple[Ids, NDArray[np.bool_], NDArray[np.bool_]]:
    """Words, tokens that are not padding, and what each position sees."""
    words, lengths = random_words(24, 64, seed=2)
    is_token = np.arange(64) < lengths[:, None]
    seen = visible_tokens(torch.from_numpy(words), torch.from_numpy(is_token), 0.5, torch.Generator().manual_seed(0))
    return words, is_token, seen.numpy()


class TestVisible:
    def test_no_position_sees_itself_or_padding_and_all_see_the_first(
        self, made: tuple[Ids, NDArray[np.bool_], NDArray[np.bool_]]
    ) -> None:
        _, is_token, seen = made
        assert not any(np.diag(one)[1:].any() for one in seen)
        assert not seen[:, :, 1:][~np.broadcast_to(is_token[:, None, 1:], (24, 64, 63))].any()
        assert seen[:, :, 0].all()

    def test_special_tokens_are_visible_to_all_others(
        self, made: tuple[Ids, NDArray[np.bool_], NDArray[np.bool_]]
    ) -> None:
        words, is_token, seen = made
        special = is_token & (words == 0)
        assert special.sum() > 48
        for text in range(24):
            for place in np.flatnonzero(special[text])[1:]:
                assert np.delete(seen[text, :, place], place).all()

    def test_words_are_seen_as_a_whole_or_not_at_all(
        self, made: tuple[Ids, NDArray[np.bool_], NDArray[np.bool_]]
    ) -> None:
        words, _, seen = made
        for text in range(24):
            for place in range(64):
                for number in range(1, words[text].max() + 1):
                    mine = (words[text] == number) & (np.arange(64) != place)
                    assert len(set(seen[text, place, mine])) <= 1

    @pytest.mark.parametrize("rate", [0.5, 0.7])
    def test_the_rate_is_kept_and_each_position_draws_for_itself(self, rate: float) -> None:
        """Each word is one token here, so that all entries are independent draws."""
        words = torch.arange(66).expand(40, 66).clone()
        words[:, -1] = 0
        is_token = torch.ones(40, 66, dtype=torch.bool)
        seen = visible_tokens(words, is_token, rate, torch.Generator().manual_seed(3))[:, 1:-1, 1:-1].double()
        off = ~torch.eye(64, dtype=torch.bool)
        draws = seen[:, off]
        assert float(draws.mean()) == pytest.approx(1 - rate, abs=0.006)
        # By word and by position, over 2,520 draws each: about 5 standard deviations.
        assert float((seen.sum((0, 1)) / (40 * 63) - (1 - rate)).abs().max()) < 0.05
        assert float((seen.sum((0, 2)) / (40 * 63) - (1 - rate)).abs().max()) < 0.05
        # Two positions, two words and two texts agree as often as independent draws do.
        agree = rate**2 + (1 - rate) ** 2
        both = off[:-1] & off[1:]
        for one, other in ((seen[:, :-1], seen[:, 1:]), (seen[:, :, :-1], seen[:, :, 1:])):
            kept = both if one.shape[1] == 63 else both.T
            assert float((one == other)[:, kept].double().mean()) == pytest.approx(agree, abs=0.006)
        assert float((draws[:-1] == draws[1:]).double().mean()) == pytest.approx(agree, abs=0.006)

    def test_an_equal_seed_gives_equal_samples(self) -> None:
        words, lengths = (torch.from_numpy(one) for one in random_words(4, 20))
        is_token = torch.arange(20) < lengths[:, None]
        one, again, other = (
            visible_tokens(words, is_token, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
