"""What a process holds that uses both frameworks: the LangChain and the LlamaIndex adapter on one model."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from benchmarks.entrants import ElsewhereError, Place
from benchmarks.fresh import run
from benchmarks.lineup import reason

THEIRS = "langchain-huggingface + llama-index-huggingface"
PAIRS = {
    THEIRS: ("langchain-huggingface", "llama-index-huggingface"),
    "bge, both adapters": ("bge-openvino-float32", "bge-llama-index-openvino-float32"),
}

_DOCUMENTS = 64


def measure(place: Place, *, repetitions: int) -> dict[str, Any]:
    """Starts each pair in processes of its own.

    Args:
        place: Where the model is.
        repetitions: How often.

    Returns:
        Plain data: `results` by pair (`contenders`, `runs`, the medians `rss_mib` and `peak_mib`, and `ratio`, the part
        of the others' resident memory) and `left_out`. There is no verdict on noise: bytes do not depend on it.
    """
    results: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for label, names in PAIRS.items():
        try:
            runs = [run(names, place, documents=_DOCUMENTS) for _ in range(repetitions)]
        except ElsewhereError as error:
            left_out[label] = reason(error)
            continue
        results[label] = {
            "contenders": list(names),
            "runs": [asdict(one) for one in runs],
            "rss_mib": statistics.median(one.rss_mib for one in runs),
            "peak_mib": statistics.median(one.peak_mib for one in runs),
        }
    for result in results.values():
        result["ratio"] = result["rss_mib"] / results[THEIRS]["rss_mib"] if THEIRS in results else None
    return {"results": results, "left_out": left_out}
