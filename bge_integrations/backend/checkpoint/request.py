"""The load request: everything that a loaded model depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from bge_integrations.backend.checkpoint.manifest import recorded_precision
from bge_integrations.backend.engines.choice import devices_that_compute
from bge_integrations.backend.machine.cpu import usable_threads
from bge_integrations.backend.machine.devices import resolve_devices, resolve_precision
from bge_integrations.redaction import shown_fields
from bge_integrations.settings import (
    EncoderSettings,
    EndpointOptions,
    ModelSettings,
    Purpose,
    RerankerSettings,
    TransformersKwargs,
)


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadRequest:
    """The key under which a loaded model is shared: equal requests share one model.

    These fields are left out of equality:

    - `token`, which only authorises downloads.
    - `decoder_question`, which each call passes.
    - `threads`. Without a number from the user it depends on the state of the process, such as torch's number of
      threads or `OMP_NUM_THREADS`. Equal settings must share one model even if that state has changed.
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
    endpoint: str | None = None
    # Compared: another key may have other rights.
    api_key: str | None = field(default=None, repr=False)
    endpoint_options: EndpointOptions = field(default_factory=EndpointOptions)

    def __repr__(self) -> str:
        """Shows no token, in any field."""
        return shown_fields(self)

    @property
    def device(self) -> str:
        """The first device. Further devices are of the same kind."""
        return self.devices[0]

    @property
    def copies(self) -> int:
        """Number of engines on the first device: one, or how many times "cpu" was named."""
        return len(self.devices) if self.device == "cpu" else 1

    @classmethod
    def from_settings(cls, settings: ModelSettings, purpose: Purpose = "vectors") -> LoadRequest:
        """Makes a request from settings. Device, precision and threads are resolved.

        For a prepared folder, `"auto"` means the CPU and the folder's own precision. Otherwise an automatic device is
        one that can compute as requested: for int8 and engine="openvino" it is the CPU. A server has one device, its
        address.

        Raises:
            DeviceNotAvailableError: A device is not on this machine.
            SettingsError: The devices can't work together.
        """
        if settings.endpoint is not None:
            return cls(
                model_name=settings.model_name,
                purpose=purpose,
                devices=(settings.endpoint,),
                precision="auto",
                engine="remote",
                revision=settings.revision,
                cache_folder=settings.cache_folder,
                local_files_only=settings.local_files_only,
                token=settings.token,
                endpoint=settings.endpoint,
                api_key=settings.api_key,
                endpoint_options=settings.server,
            )
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
