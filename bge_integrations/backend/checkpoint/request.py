"""What is asked of the backend: everything that a loaded model depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from bge_integrations.backend.checkpoint.manifest import recorded_precision
from bge_integrations.backend.engines.choice import devices_that_compute
from bge_integrations.backend.machine.cpu import usable_threads
from bge_integrations.backend.machine.devices import resolve_devices, resolve_precision
from bge_integrations.redaction import shown_fields
from bge_integrations.settings import EncoderSettings, ModelSettings, Purpose, RerankerSettings, TransformersKwargs


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadRequest:
    """Everything that a loaded model depends on; equal requests share one.

    Left out of equality are the token, which only opens the door, and what a decoder is asked, which each call says.
    `threads` is left out too: where the user gives no number, it depends on the process's state at the time, such as
    torch's number or `OMP_NUM_THREADS`, and equal settings must share one model whatever has happened in between.
    """

    model_name: str
    purpose: Purpose = "vectors"
    devices: tuple[str, ...]
    precision: str
    engine: str = "auto"
    pooling: str | None = None
    given_threads: int | None = None
    threads: int = field(default=1, compare=False)
    revision: str | None = None
    cache_folder: str | None = None
    trust_remote_code: bool = False
    local_files_only: bool = False
    allow_pickle_weights: bool = False
    transformers_kwargs: TransformersKwargs = field(default_factory=TransformersKwargs)
    token: str | bool | None = field(default=None, repr=False, compare=False)
    decoder_question: str | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """Shows no token, wherever it was put."""
        return shown_fields(self)

    @property
    def device(self) -> str:
        """The first device; further ones are of its kind."""
        return self.devices[0]

    @property
    def copies(self) -> int:
        """Engines on the first device: one, or as many as the processor was named."""
        return len(self.devices) if self.device == "cpu" else 1

    @classmethod
    def from_settings(cls, settings: ModelSettings, purpose: Purpose = "vectors") -> LoadRequest:
        """Takes what concerns loading, with device, precision and threads resolved.

        A prepared folder is made for the CPU and knows its own precision, so there `"auto"` means these. A device that
        is left open is one that can compute as asked: int8 and engine="openvino" mean the processor.

        Raises:
            DeviceNotAvailableError: If a device is not on this machine.
            SettingsError: Devices that can't work together.
        """
        recorded = recorded_precision(settings.model_name)
        kinds = ("cpu",) if recorded else devices_that_compute(settings.engine, settings.precision)
        devices = resolve_devices(settings.device, kinds)
        automatic = settings.precision == "auto"
        return cls(
            model_name=settings.model_name,
            purpose=purpose,
            devices=devices,
            precision=recorded if recorded and automatic else resolve_precision(settings.precision, devices[0]),
            engine=settings.engine,
            pooling=settings.pooling if isinstance(settings, EncoderSettings) else None,
            given_threads=settings.threads,
            threads=settings.threads or usable_threads(),
            revision=settings.revision,
            cache_folder=settings.cache_folder,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=settings.local_files_only,
            allow_pickle_weights=settings.allow_pickle_weights,
            transformers_kwargs=settings.transformers_kwargs,
            token=settings.token,
            decoder_question=settings.prompt if isinstance(settings, RerankerSettings) else None,
        )
