"""Scripts that run in processes together: they meet, and none of them waits for ever."""

from __future__ import annotations

import pytest

from tests.processes import Together

_MEET = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
print(f"{sys.argv[1]} {dist.get_world_size()} {os.environ['LOCAL_WORLD_SIZE']} {int(total)} {os.environ.get('MINE')}")
dist.destroy_process_group()
"""

_ONE_FAILS = """
import os, threading
if os.environ["RANK"] == "1":
    raise SystemExit("the second one gives up")
threading.Event().wait()
"""

_ONE_WAITS = """
import os, threading
if os.environ["RANK"] == "1":
    threading.Event().wait()
"""


def test_processes_meet_also_where_the_first_ends_long_before_the_others(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "seen")
    for processes, total in ((1, 1), (3, 6)):
        ended = together(_MEET, "hello", processes=processes)
        assert ended.codes == [0] * processes, ended.said
        assert ended.said.splitlines() == [f"hello {processes} {processes} {total} seen"] * processes


def test_where_one_fails_the_others_are_ended(together: Together) -> None:
    ended = together(_ONE_FAILS)
    assert ended.codes == [-9, 1]
    assert "the second one gives up" in ended.said


def test_one_that_waits_for_ever_is_ended_and_tells_where_it_was(together: Together) -> None:
    with pytest.raises(TimeoutError, match=r"ended after 1 seconds:\n(.|\n)*processes\.py\", line \d+ in _run\n"):
        together(_ONE_WAITS, limit=1)
    assert together(_MEET, "again").codes == [0, 0]
