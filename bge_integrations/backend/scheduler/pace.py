"""The pace of an engine, by which bulk batches are cut."""

from __future__ import annotations

from dataclasses import dataclass

_KEPT = 0.8
# A smaller batch takes a GPU as long as this one, because it waits for launches.
_TELLING_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """The longest computing times of a bulk batch, in seconds.

    Attributes:
        between_interactive: While interactive jobs come.
        alone: While none come.
    """

    between_interactive: float
    alone: float


class Pace:
    """Learns how many tokens an engine computes in a second, as an exponential mean over its bulk batches.

    Attributes:
        tokens_per_second: The mean; `None` before the first batch that is large enough to tell.
    """

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        self._tokens = 0.0
        self._seconds = 0.0
        self._last_end = -float("inf")

    def add(self, tokens: int, start: float, end: float) -> None:
        """Counts a batch. The engine may have computed the batch before it for a part of the time.

        Batches of fewer than 4,096 tokens count only if they raise the mean. Otherwise short batches, which are slow a
        token, would make the next ones shorter still. A batch of twice the pace replaces the mean: the first batches of
        an engine may be slow.

        Args:
            tokens: Its tokens, padding included. 0: only its time is noted.
            start: Time of its submission, in seconds.
            end: Time of its end. The times of the ends ascend.
        """
        seconds = end - max(start, self._last_end)
        self._last_end = end
        if seconds <= 0 or not tokens:
            return
        pace, mean = tokens / seconds, self.tokens_per_second
        if tokens < _TELLING_TOKENS and (mean is None or pace <= mean):
            return
        kept = 0.0 if mean is not None and pace > 2 * mean else _KEPT
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + seconds
        self.tokens_per_second = self._tokens / self._seconds
