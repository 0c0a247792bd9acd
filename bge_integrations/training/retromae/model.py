"""Encoder, head and decoder together, and their loss. Imports torch.

With c the first row of the encoder's output for the masked text, and emb its embedding layer:

    keys, values   c in the first place, emb of the unmasked tokens in the others
    queries        emb of c at every position: with position and type, normalised
    x              LN(queries + W · attention), then LN(x + FFN(x))
    loss           cross entropy of the masked tokens from the encoder's rows, plus cross entropy of all tokens but the
                   first and the last from the decoder's; both through one head
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.training.machine.budget import mini_batches
from bge_integrations.training.machine.memory import Budget
from bge_integrations.training.machine.processes import process_count, total
from bge_integrations.training.retromae.decoder import EnhancedDecoder
from bge_integrations.training.retromae.head import MlmHead
from bge_integrations.training.retromae.masks import visible_tokens

__all__ = ["RetroMae"]


class RetroMae(nn.Module):
    """An encoder that is pre-trained, with the parts that only the pre-training needs.

    Attributes:
        transformer: sentence-transformers' module with the encoder.
        head: The head, which encoder and decoder share.
        decoder: The decoder.
        budget: How much is computed at once.
        losses: The parts of the last loss of all processes: "encoder_loss" and "decoder_loss".
    """

    def __init__(
        self,
        transformer: Any,  # noqa: ANN401 - of sentence-transformers
        shape: EncoderShape,
        head: MlmHead,
        *,
        decoder_masking: float,
        budget: Budget,
    ) -> None:
        """Takes the encoder, and makes a decoder with new weights."""
        super().__init__()
        config = transformer.auto_model.config
        self.transformer = transformer
        self.head = head
        self.decoder = EnhancedDecoder(
            shape,
            dropout=config.hidden_dropout_prob,
            attention_dropout=transformer.auto_model.encoder.layer[0].attention.self.dropout.p,
            spread=config.initializer_range,
        )
        self.budget = budget
        self.losses: dict[str, Tensor] = {}
        self._shape = shape
        self._decoder_masking = decoder_masking

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss: the mean over the masked tokens plus the mean over the decoder's, of all processes."""
        lengths = batch["attention_mask"].sum(1).tolist()
        device = batch["input_ids"].device
        # A process has the mean over its own tokens; trainers average the gradients of processes.
        processes = process_count()
        counts = (batch["is_chosen"].sum(), sum(lengths) - 2 * len(lengths))
        shares = [processes / max(1.0, total(float(count), device)) for count in counts]
        parts = list(_parts(batch, mini_batches(lengths, self.budget.mini_batch_tokens, None)))
        # Then only the inputs of a part are kept, and its activations are computed again for the backward pass.
        computed_twice = torch.is_grad_enabled() and sum(lengths) > self.budget.tokens_in_memory
        found = [
            checkpoint(self._sums, part, use_reentrant=False) if computed_twice else self._sums(part) for part in parts
        ]
        sums = torch.stack(found).sum(0)
        means = sums * sums.new_tensor(shares)
        logged = means.detach().clone()
        if processes > 1:
            dist.all_reduce(logged)
        self.losses = dict(zip(("encoder_loss", "decoder_loss"), logged / processes, strict=True))
        return means.sum()

    def _sums(self, part: Mapping[str, Tensor]) -> Tensor:
        """Returns the sums of the encoder's and the decoder's cross entropies over the tokens of some texts."""
        is_token, is_chosen, ids = part["attention_mask"].bool(), part["is_chosen"], part["input_ids"]
        features = {"input_ids": part["read_ids"], "attention_mask": part["attention_mask"]}
        hidden = self.transformer(features)[self.transformer.module_output_name]
        embeddings = self.transformer.auto_model.embeddings
        table = embeddings.word_embeddings.weight
        of_encoder = self.head.loss(hidden[is_chosen], table, ids[is_chosen])
        rows = self._decoded(hidden[:, 0], ids, is_token, part)
        is_asked = _all_but_first_and_last(is_token)
        return torch.stack([of_encoder, self.head.loss(rows, table, ids[is_asked])])

    def _decoded(self, vectors: Tensor, ids: Tensor, is_token: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        """Returns the decoder's rows of all tokens but the first and the last of each text."""
        embeddings = self.transformer.auto_model.embeddings
        places = torch.arange(ids.shape[1], device=ids.device)
        first = self._shape.pad_id + 1 if self._shape.positions_after_padding else 0
        beside = embeddings.position_embeddings(places + first) + embeddings.token_type_embeddings.weight[0]
        places = places.expand(ids.shape)

        def embedded(words: Tensor, where: Tensor) -> Tensor:
            rows: Tensor = embeddings.dropout(embeddings.LayerNorm(words + beside[places[where]]))
            return rows

        repeated = vectors[:, None].expand(-1, ids.shape[1], -1)
        known = embedded(functional.embedding(ids[is_token], embeddings.word_embeddings.weight), is_token)
        known = torch.where(places[is_token][:, None] == 0, repeated[is_token].to(known.dtype), known)
        is_asked = _all_but_first_and_last(is_token)
        draws = torch.Generator(ids.device)
        draws.manual_seed(int(part["seed"]))
        seen = visible_tokens(part["words"], is_token, self._decoder_masking, draws)
        rows: Tensor = self.decoder(embedded(repeated[is_asked], is_asked), is_asked, known, is_token, seen)
        return rows


def _all_but_first_and_last(is_token: Tensor) -> Tensor:
    is_asked = is_token.clone()
    is_asked[:, 0] = False
    # The last token is the one after which padding begins.
    is_asked[:, :-1] &= is_token[:, 1:]
    is_asked[:, -1] = False
    return is_asked


def _parts(batch: Mapping[str, Tensor], places: list[tuple[int, int]]) -> Iterator[dict[str, Tensor]]:
    """Yields parts of a batch of texts, without columns that only have padding, each with a seed of its own."""
    for number, (begin, end) in enumerate(places):
        longest = int(batch["attention_mask"][begin:end].sum(1).max())
        columns = {name: rows[begin:end, :longest] for name, rows in batch.items() if name != "seed"}
        yield {**columns, "seed": batch["seed"] + number}
