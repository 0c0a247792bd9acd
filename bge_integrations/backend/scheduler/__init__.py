"""The queue of a loaded model: texts of all callers wait here, and engines take them in batches.

A `job` waits in a `queue`. `admission` limits the texts in flight, `policy` chooses the next batch of an engine, a
`worker` runs one engine, and `scheduler` connects these parts.
"""

from bge_integrations.backend.engines.interface import Priority
from bge_integrations.backend.scheduler.job import Job, TextFailedError, Unread
from bge_integrations.backend.scheduler.pace import TimeLimits
from bge_integrations.backend.scheduler.scheduler import Scheduler
from bge_integrations.backend.scheduler.statistics import Meter, Statistics
from bge_integrations.backend.scheduler.worker import EngineSlot

__all__ = [
    "EngineSlot",
    "Job",
    "Meter",
    "Priority",
    "Scheduler",
    "Statistics",
    "TextFailedError",
    "TimeLimits",
    "Unread",
]
