"""How a model is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bge_integrations.errors import SettingsError

__all__ = [
    "Distillation",
    "DistillationTraining",
    "EmbedderTraining",
    "Lora",
    "M3Training",
    "RerankerTraining",
    "RetroMaeTraining",
    "TrainingSettings",
]

_LEAST_LENGTH = 8
"""Tokens of a piece for pre-training, at least."""

Distillation = Literal["kl_div", "m3_kd_loss"]
"""How a teacher's scores act, with the names of FlagEmbedding's option `kd_loss_type`."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How any model is trained.

    Attributes:
        epochs: Passes over the rows.
        max_steps: Steps of the optimiser; `None`: as `epochs` says.
        batch_size: Rows of a batch in each process.
        learning_rate: The highest learning rate, for AdamW.
        warmup: Part of the steps in which the learning rate rises to it; afterwards it falls linearly to 0.
        weight_decay: Of AdamW.
        attention_dropout: Whether dropout acts inside attention.
        precision: Of the computation: "auto" takes bfloat16 where the processor or the GPU has it, else float32.
        mini_batch_tokens: Tokens of one forward pass; `None`: as many as suit the device.
        tokens_in_memory: Tokens of a batch whose activations may be in memory at once; a larger batch is computed in
            parts, with cached gradients. `None`: as many as fit a part of the device's memory.
        seed: Of the order, of what is drawn, and of dropout.
    """

    epochs: float = 1
    max_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-5
    warmup: float = 0.1
    weight_decay: float = 0.0
    attention_dropout: bool = False
    precision: str = "auto"
    mini_batch_tokens: int | None = None
    tokens_in_memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            SettingsError: A number is out of range, or a choice is unknown.
        """
        self._check_positive("epochs", "batch_size", "learning_rate", "mini_batch_tokens")
        if self.precision == "float16":
            raise SettingsError(
                "precision='float16' can't be trained with: small gradients become 0, and the loss NaN. Take "
                "'bfloat16', 'float32' or 'auto'; a trained model can be used in float16."
            )
        self._check_choice("precision", ("auto", "float32", "bfloat16"))

    def as_plain(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        content: dict[str, Any] = _plain(dataclasses.asdict(self))
        return content

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise SettingsError(f"{name}={getattr(self, name)} must be above 0.")

    def _check_choice(self, name: str, known: tuple[str | None, ...]) -> None:
        if getattr(self, name) not in known:
            raise SettingsError(f"{name}={getattr(self, name)!r} is unknown; choose one of {known}.")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter, which is trained in place of all weights: https://arxiv.org/abs/2106.09685.

    The defaults are those of the examples for BGE's decoders, which have a learning rate of 1e-4.

    Attributes:
        rank: Rank of the change of a layer's weight.
        alpha: The change is multiplied by alpha / rank; `None`: twice the rank.
        dropout: Part of an adapted layer's input that the adapter does not see in training.
        targets: Names of the linear layers to adapt, such as `("q_proj", "v_proj")`; `None`: all of the transformer.
        merge: Whether the saved model is whole: the adapter is added to the weights. Otherwise the folder has the
            adapter and the name of its base, which is loaded too whenever it is used, and by sentence-transformers'
            engine, which is slower for BERT-like encoders.
    """

    rank: int = 32
    alpha: int | None = None
    dropout: float = 0.1
    targets: Sequence[str] | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            SettingsError: A number is out of range, or `targets` names nothing.
        """
        for name in ("rank", "alpha"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise SettingsError(f"The {name}={getattr(self, name)} of a LoRA adapter must be above 0.")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"The dropout={self.dropout} of a LoRA adapter must be from 0 to below 1.")
        if isinstance(self.targets, str) or (self.targets is not None and not self.targets):
            raise SettingsError(f"targets={self.targets!r} of a LoRA adapter must be names of layers; or leave it out.")


@dataclass(frozen=True, kw_only=True)
class EmbedderTraining(TrainingSettings):
    """How an embedding model is trained on queries and passages.

    The defaults are those of BGE's authors where they name one. All passages of a batch are negatives for its other
    rows. See `TrainingSettings` for the other attributes.

    Attributes:
        temperature: Divisor of the cosines. `None`: 0.01 for BGE's first BERT models, 0.02 for all others.
        negatives: Negatives of a row, at most.
        query_length: Tokens of a query, at most, with the instruction.
        passage_length: Tokens of a passage, at most, with the instruction that some types of rows have there.
        distillation: How the scores of the data act: "kl_div" or "m3_kd_loss"; `None`: not at all.
        matryoshka_dims: Lengths of the vectors that are trained too.
        guide: A model whose vectors tell false negatives; `None`: none.
        guide_margin: A passage is no negative if the guide's cosine is above that of the positive less this.
        teacher_margin: A negative of a row is none if a teacher's score of it is above that of the row's lowest
            positive less this; it takes the scores of the data. `None`: scores leave nothing out.
        same_source: Whether the rows of a batch are of one source and one type.
        evaluate_every: Steps between evaluations on the validation data; `None`: after each epoch.
        patience: Evaluations without a better one before training stops; `None`: it does not stop early.
        example_rows: Other rows of the batch that stand before a query as examples, at most. For each query, a number
            from 0 to this is drawn. bge-en-icl takes examples, and was trained with 5.
        lora: An adapter that is trained in place of all weights; `None`: all weights are trained.
    """

    temperature: float | None = None
    negatives: int = 7
    query_length: int = 64
    passage_length: int = 256
    distillation: Distillation | None = None
    matryoshka_dims: Sequence[int] = ()
    guide: str | None = None
    guide_margin: float = 0.0
    teacher_margin: float | None = None
    same_source: bool = False
    evaluate_every: int | None = None
    patience: int | None = None
    example_rows: int = 0
    lora: Lora | None = None

    def __post_init__(self) -> None:
        """See `TrainingSettings.__post_init__`."""
        super().__post_init__()
        self._check_positive("query_length", "passage_length", "evaluate_every", "patience")
        if self.temperature is not None and self.temperature <= 0:
            raise SettingsError(f"temperature={self.temperature} must be above 0; BGE models have 0.01 or 0.02.")
        for name in ("negatives", "example_rows"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name)} must be 0 or more.")
        self._check_choice("distillation", (None, "kl_div", "m3_kd_loss"))


@dataclass(frozen=True, kw_only=True)
class M3Training(EmbedderTraining):
    """How the three outputs of bge-m3 are trained together. See `EmbedderTraining` for the other attributes.

    The weights are those of the paper, in the order dense, sparse, colbert: section 3.3 of
    https://aclanthology.org/2024.findings-acl.137. An output whose two weights are 0 is not trained.

    Attributes:
        temperature: Divisor of all three scores.
        score_weights: Of the three scores in their sum, which is trained too and teaches the three.
        loss_weights: Of the losses of the three scores.
        self_distillation: Whether the sum of the scores teaches each of them.
        distil_after: Steps of the optimiser before self-distillation begins. For new heads it should be some thousand.
        train_encoder: Whether the encoder is trained. Otherwise the two heads alone are, and dense vectors stay.
    """

    temperature: float | None = 0.02
    score_weights: Sequence[float] = (1.0, 0.3, 1.0)
    loss_weights: Sequence[float] = (1.0, 0.1, 1.0)
    self_distillation: bool = True
    distil_after: int = 0
    train_encoder: bool = True

    def __post_init__(self) -> None:
        """See `TrainingSettings.__post_init__`."""
        super().__post_init__()
        if self.matryoshka_dims:
            raise SettingsError(
                f"matryoshka_dims={self.matryoshka_dims} does not go with bge-m3, whose other outputs have no shorter "
                "form; leave it out, or train the dense vectors alone with train_embedder."
            )
        if self.lora is not None:
            raise SettingsError(
                "lora does not go with bge-m3: train all weights, or the heads alone (train_encoder=False), or the "
                "dense vectors alone with train_embedder."
            )
        for name in ("score_weights", "loss_weights"):
            weights = tuple(getattr(self, name))
            if len(weights) != 3 or not all(math.isfinite(one) and one >= 0 for one in weights):
                raise SettingsError(
                    f"{name}={weights} must be three numbers of at least 0: of dense, sparse and colbert."
                )
            object.__setattr__(self, name, weights)
        if not any(self.score_weights):
            raise SettingsError("score_weights are all 0, so that nothing is summed up; give one above 0.")
        if self.distil_after < 0:
            raise SettingsError(f"distil_after={self.distil_after} must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class DistillationTraining(TrainingSettings):
    """How a model is trained towards the vectors of another. See `TrainingSettings` for the other attributes.

    Attributes:
        learning_rate: The highest learning rate. It is above that of fine-tuning, since the vectors may change a lot.
        length: Tokens of a text, at most, with the instruction; `None`: as many as the model reads.
        save_every: Steps between checkpoints, from which a killed run goes on.
    """

    learning_rate: float = 1e-4
    length: int | None = None
    save_every: int = 500

    def __post_init__(self) -> None:
        """See `TrainingSettings.__post_init__`."""
        super().__post_init__()
        self._check_positive("length", "save_every")


@dataclass(frozen=True, kw_only=True)
class RetroMaeTraining(TrainingSettings):
    """How an encoder is pre-trained on plain texts. See `TrainingSettings` for the other attributes.

    Masking, length and learning rate are those of BGE's authors. A row is a text, or a piece of a long one.

    Attributes:
        learning_rate: The highest learning rate.
        length: Tokens of a piece, at most, special tokens included; `None`: as many as the model reads. Longer texts
            are cut into pieces.
        encoder_masking: The part of a text's tokens that the encoder must tell.
        decoder_masking: The chance of a word to be hidden from a position of the decoder.
        save_every: Steps between checkpoints, from which a killed run goes on.
    """

    learning_rate: float = 2e-5
    length: int | None = 512
    encoder_masking: float = 0.3
    decoder_masking: float = 0.5
    save_every: int = 500

    def __post_init__(self) -> None:
        """See `TrainingSettings.__post_init__`."""
        super().__post_init__()
        self._check_positive("save_every")
        if self.length is not None and self.length < _LEAST_LENGTH:
            raise SettingsError(f"length={self.length} leaves no room for words; give at least {_LEAST_LENGTH}.")
        for name in ("encoder_masking", "decoder_masking"):
            if not 0 < getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)} must be above 0 and below 1; BGE has 0.3 and 0.5.")


@dataclass(frozen=True, kw_only=True)
class RerankerTraining(TrainingSettings):
    """How a reranker is trained on queries and passages.

    The defaults are those of BGE's authors where they name one. A row has a group of its own: one positive and its
    negatives. Rows' prompts are instructions of embedding models, so that they are not read. See `TrainingSettings` for
    the other attributes.

    Attributes:
        batch_size: Rows of a batch in each process. With 7 negatives, a row is 8 pairs.
        learning_rate: The highest learning rate, for AdamW.
        weight_decay: Of AdamW.
        negatives: Negatives of a row, at most.
        easy_negatives: Part of them that are random passages of other rows of the same file, from 0 to 1. Rerankers
            that saw only hard negatives can fail on easy ones. Rows with too few negatives of their own get more of
            them; with 0, they have smaller groups.
        max_length: Tokens of a pair, at most, with the instruction. The passage is cut, as `BgeReranker` does it; the
            query is cut only if it leaves no room.
        distillation: How the scores of the data act: "kl_div" adds the cross entropy to the softmax of a teacher's
            scores of the row's own passages; `None`: not at all.
        teacher_margin: A negative of a row is none if a teacher's score of it is above that of the row's lowest
            positive less this; it takes the scores of the data. `None`: scores leave nothing out.
        evaluate_every: Steps between evaluations on the validation data; `None`: after each epoch.
        patience: Evaluations without a better one before training stops; `None`: it does not stop early.
    """

    batch_size: int = 16
    learning_rate: float = 6e-5
    weight_decay: float = 0.01
    negatives: int = 7
    easy_negatives: float = 0.25
    max_length: int = 512
    distillation: Literal["kl_div"] | None = None
    teacher_margin: float | None = None
    evaluate_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """See `TrainingSettings.__post_init__`."""
        super().__post_init__()
        self._check_positive("negatives", "max_length", "evaluate_every", "patience")
        if not 0 <= self.easy_negatives <= 1:
            raise SettingsError(f"easy_negatives={self.easy_negatives} must be a part from 0 to 1.")
        self._check_choice("distillation", (None, "kl_div"))


def _plain(value: Any) -> Any:  # noqa: ANN401 - plain data of any kind
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
