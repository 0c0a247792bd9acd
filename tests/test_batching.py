"""How texts are grouped into forward passes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_integrations.backend.engines.batching import plan_batches

lengths_strategy = st.lists(st.integers(1, 600), max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths_strategy, st.integers(1, 5000), st.none() | st.integers(1, 20))
def test_every_text_is_in_one_batch_within_the_budget(
    lengths: np.ndarray, batch_tokens: int, max_texts: int | None
) -> None:
    batches = list(plan_batches(lengths, batch_tokens=batch_tokens, max_texts=max_texts))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= batch_tokens
        assert max_texts is None or len(batch) <= max_texts


@given(lengths_strategy)
def test_the_longest_come_first(lengths: np.ndarray) -> None:
    order = [int(lengths[index]) for batch in plan_batches(lengths, batch_tokens=512) for index in batch]
    assert order == sorted(order, reverse=True)


def test_little_is_padded_on_mixed_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 2000).clip(3, 512).astype(np.int64)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in plan_batches(lengths, batch_tokens=4096))
    assert padded < 1.05 * int(lengths.sum())
