"""Fine-tuning in the shape of LlamaIndex's own engine, whose package llama-index-finetuning is no longer maintained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bge_integrations.errors import SettingsError
from bge_integrations.llama_index.embeddings import HuggingFaceBgeEmbedding
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import EmbedderTraining, TrainingResult, load_training_data, train_embedder

if TYPE_CHECKING:
    from bge_integrations.training import TrainingData

__all__ = ["BgeFinetuneEngine"]


class BgeFinetuneEngine:
    """Fine-tunes a BGE model on questions and passages; it takes the place of `SentenceTransformersFinetuneEngine`.

    Queries get the model's instruction, in training and afterwards. Rows are shuffled, all relevant passages of a
    question are used, and the loss has the temperature of BGE models.

    Example:
        ```python
        engine = BgeFinetuneEngine("train.json", model_id="BAAI/bge-small-en-v1.5", model_output_path="tuned")
        engine.finetune()
        embed_model = engine.get_finetuned_model()
        ```

    Attributes:
        result: What the training gave; `None` before `finetune`.
    """

    def __init__(
        self,
        dataset: object,
        model_id: str | os.PathLike[str] = "BAAI/bge-small-en-v1.5",
        model_output_path: str | os.PathLike[str] = "exp_finetune",
        batch_size: int = 32,
        val_dataset: object | None = None,
        epochs: int = 2,
        show_progress_bar: bool = True,
        evaluation_steps: int | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
        resume_from_checkpoint: bool = False,
        settings: EmbedderTraining | None = None,
    ) -> None:
        """Reads the data. Nothing is trained yet.

        Args:
            dataset: Path of a saved `EmbeddingQAFinetuneDataset` or of other training data, such a dataset itself, or
                `TrainingData`.
            model_id: Hub id or folder.
            model_output_path: Folder to make. It must be empty or not there.
            batch_size: Rows of a batch; each gives the others negatives, so a larger batch is better.
            val_dataset: As `dataset`, to choose the best checkpoint by; `None`: none.
            epochs: Passes over the rows.
            show_progress_bar: Whether to show a progress bar.
            evaluation_steps: Steps between evaluations; `None`: after each epoch.
            trust_remote_code: Run Python code that comes with the checkpoint.
            device: Device; `None`: the best there is.
            resume_from_checkpoint: Whether to go on where a killed run stopped.
            settings: How to train, with everything else; `None`: the defaults. The arguments above that are in it too
                are taken from it.

        Raises:
            TrainingDataError: The data is wrong; the file, the place and the fix are named.
            SettingsError: A setting is wrong.
        """
        self._data = _read(dataset)
        self._validation = None if val_dataset is None else _read(val_dataset)
        self._start = EncoderSettings(
            model_name=os.fspath(model_id), device=device, trust_remote_code=trust_remote_code
        )
        self._output = model_output_path
        self._settings = settings or EmbedderTraining(
            epochs=epochs, batch_size=batch_size, evaluate_every=evaluation_steps
        )
        self._shows_progress = show_progress_bar
        self._resumes = resume_from_checkpoint
        self.result: TrainingResult | None = None

    def finetune(self) -> None:
        """Trains, and writes the folder.

        Raises:
            BgeError: See `train_embedder`.
        """
        self.result = train_embedder(
            self._data,
            self._start,
            self._output,
            settings=self._settings,
            validation=None if self._validation is None else self._validation.as_retrieval_data(),
            resume=self._resumes,
            show_progress=self._shows_progress,
        )

    def get_finetuned_model(self, **model_kwargs: Any) -> HuggingFaceBgeEmbedding:  # noqa: ANN401 - its own fields
        """Returns the trained model for LlamaIndex.

        Args:
            **model_kwargs: Arguments of `HuggingFaceBgeEmbedding`.

        Raises:
            SettingsError: Nothing is trained yet.
        """
        if self.result is None:
            raise SettingsError("There is no trained model yet; call finetune() first.")
        return HuggingFaceBgeEmbedding(str(self.result.output), **{"device": self._start.device, **model_kwargs})


def _read(dataset: object) -> TrainingData:
    from bge_integrations.training import TrainingData

    return dataset if isinstance(dataset, TrainingData) else load_training_data(dataset)
