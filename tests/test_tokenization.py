"""Token ids are those of transformers, cut where transformers cuts."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from bge_integrations.backend.text.tokenizer import TextTokenizer
from tests.checkpoints import Architecture
from tests.conftest import MakeCheckpoint

TEXTS = [
    "",
    " ",
    "fox",
    "The quick brown fox [SEP] jumps </s> over [MASK]",
    "样例数据 北京",
    "fox " * 100,
    "\x00\u200b👩‍👩‍👧",
]


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [3, 8, 64])
def test_ids_equal_transformers(make: MakeCheckpoint, architecture: Architecture, side: str, limit: int) -> None:
    theirs = AutoTokenizer.from_pretrained(make("model", architecture), truncation_side=side)
    ours = TextTokenizer.copy_of(theirs).tokenize(TEXTS, limit)
    expected = theirs(TEXTS, truncation=True, max_length=limit)["input_ids"]
    assert [ours.of(np.array([text])).tolist() for text in range(len(TEXTS))] == expected
    assert ours.of(np.array([2, 0])).tolist() == expected[2] + expected[0]
    assert ours.full_lengths.tolist() == [len(ids) for ids in theirs(TEXTS, truncation=False)["input_ids"]]
    assert ours.lengths.tolist() == [len(ids) for ids in expected]


def test_the_checkpoints_own_tokenizer_keeps_its_state(make: MakeCheckpoint) -> None:
    theirs = AutoTokenizer.from_pretrained(make("model"))
    theirs(["fox"], padding=True, truncation=True, max_length=5, return_tensors="pt")
    before = theirs.backend_tokenizer.truncation
    TextTokenizer.copy_of(theirs).tokenize(TEXTS, 8)
    assert before is not None
    assert theirs.backend_tokenizer.truncation == before


def test_a_private_copy_is_not_disturbed_by_calls_beside_it(make: MakeCheckpoint) -> None:
    theirs = AutoTokenizer.from_pretrained(make("model"))
    ours = TextTokenizer.copy_of(theirs)
    theirs(TEXTS, padding=True, truncation=True, max_length=5)
    assert ours.tokenize(["fox " * 30], 64).lengths.tolist() == [32]


def test_a_tokenizer_without_special_tokens_still_gives_a_token(minilm: str) -> None:
    theirs = AutoTokenizer.from_pretrained(minilm)
    theirs.backend_tokenizer.post_processor = None
    tokenizer = TextTokenizer.copy_of(theirs)
    assert tokenizer.special_tokens == 0
    assert tokenizer.tokenize(["", "fox"], 8).lengths.tolist() == [1, 1]
