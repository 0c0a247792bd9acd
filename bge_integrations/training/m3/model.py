"""bge-m3 as it is trained: an encoder and its two heads as one module. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bge_integrations.backend.model.heads import COLBERT, SPARSE, Heads
from bge_integrations.catalogue import M3_HEAD_FILES
from bge_integrations.training.machine.budget import unit_rows

__all__ = ["M3Model", "TokenRows", "new_heads"]


class M3Model(nn.Module):
    """An encoder with the heads for lexical weights and token vectors.

    The three outputs of a text are the rows of one matrix, so that all of them are handed on, gathered from other
    processes and cached as one tensor. The first token, [CLS], has no token vector and no lexical weight. Its row has
    the dense vector instead.
    """

    def __init__(self, encoder: Any, heads: Heads) -> None:  # noqa: ANN401 - a SentenceTransformer
        """Takes the encoder and the weights of the heads, as `backend.model.heads` names them."""
        super().__init__()
        self.encoder = encoder
        self.sparse = _linear(heads, SPARSE).to(encoder.device)
        self.colbert = _linear(heads, COLBERT).to(encoder.device)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs of texts, as the rows of their tokens without padding.

        Args:
            features: Token ids and masks, shape [texts, longest], padded on the right.

        Returns:
            "sentence_embedding", by the name that cached losses read: shape [tokens of all texts, width + 1]. The first
            row of a text has the dense vector and 0. Each other row has a token vector before normalisation and a
            lexical weight of at least 0. The shorter one of dense vector and token vector ends in zeros.
        """
        mask = features["attention_mask"].bool()
        found = self.encoder(dict(features))
        hidden, dense = found["token_embeddings"], found["sentence_embedding"]
        weights = F.relu(self.sparse(hidden))
        width = max(dense.shape[-1], self.colbert.out_features)
        vectors = F.pad(self.colbert(hidden), (0, width - self.colbert.out_features))
        first = F.pad(dense, (0, width - dense.shape[-1] + 1)).unsqueeze(1)
        # Of different precisions, the higher one is taken.
        rows = torch.cat([first, torch.cat([vectors, weights], -1)[:, 1:]], 1)
        return {"sentence_embedding": rows[mask]}

    def write_heads(self, folder: Path) -> None:
        """Writes the heads as bge-m3 has them: two files of `torch.save`, each with a weight and a bias."""
        for name, linear in self._heads.items():
            state = {key: value.detach().cpu().clone() for key, value in linear.state_dict().items()}
            torch.save(state, folder / M3_HEAD_FILES[name])

    def restore_heads(self, folder: Path) -> None:
        """Reads the heads that `write_heads` wrote."""
        for name, linear in self._heads.items():
            linear.load_state_dict(torch.load(folder / M3_HEAD_FILES[name], map_location="cpu", weights_only=True))

    @property
    def _heads(self) -> dict[str, nn.Linear]:
        return {SPARSE: self.sparse, COLBERT: self.colbert}


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The outputs of some texts, as `M3Model` gives them, but with vectors of length 1.

    Attributes:
        rows: Shape [tokens of all texts, width + 1].
        ids: int64, shape [tokens of all texts].
        lengths: int64, shape [texts]: tokens of each text.
    """

    rows: Tensor
    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, rows: Tensor, column: Mapping[str, Tensor], unweighted: Sequence[int]) -> TokenRows:
        """Normalises vectors, and takes the weights from tokens that have none.

        Args:
            rows: What `M3Model` gives.
            column: Token ids and masks of the same texts.
            unweighted: Ids of special tokens.
        """
        mask = column["attention_mask"].bool()
        ids = column["input_ids"][mask]
        special = torch.isin(ids, torch.tensor(unweighted, dtype=ids.dtype, device=ids.device))
        weights = rows[:, -1:].masked_fill(special.unsqueeze(1), 0)
        unit = unit_rows(rows[:, :-1])
        return cls(torch.cat([unit, weights.to(unit.dtype)], 1), ids, mask.sum(1))

    @property
    def starts(self) -> Tensor:
        """The row of each text's first token, shape [texts]."""
        return self.lengths.cumsum(0) - self.lengths

    def chosen(self, texts: Tensor) -> TokenRows:
        """Returns the rows of some texts, by their places (int64)."""
        lengths = self.lengths[texts]
        shift = self.starts[texts] - (lengths.cumsum(0) - lengths)
        places = torch.arange(int(lengths.sum()), device=lengths.device) + shift.repeat_interleave(lengths)
        return TokenRows(self.rows[places], self.ids[places], lengths)

    @property
    def dense(self) -> Tensor:
        """The dense vectors, shape [texts, width]."""
        return self.rows[self.starts, :-1]

    @property
    def weights(self) -> Tensor:
        """The lexical weight of each token, shape [tokens of all texts]."""
        return self.rows[:, -1]

    @property
    def owners(self) -> Tensor:
        """The place of each token's text, shape [tokens of all texts]."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)


def new_heads(width: int, seed: int) -> Heads:
    """Returns heads with random weights, as torch makes them and bge-m3 began."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {SPARSE: nn.Linear(width, 1), COLBERT: nn.Linear(width, width)}
    return {f"{name}.{key}": value.numpy() for name, one in made.items() for key, value in one.state_dict().items()}


def _linear(heads: Heads, name: str) -> nn.Linear:
    weight, bias = (torch.tensor(heads[f"{name}.{key}"]) for key in ("weight", "bias"))
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    made.load_state_dict({"weight": weight, "bias": bias})
    return made
