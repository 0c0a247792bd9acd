"""The queue of a loaded model: texts of all callers wait here, and engines take them in batches.

`job` is what waits, `queue` holds it in its order, `admission` limits how much is in flight, `policy` says what an
engine takes next, `worker` runs one engine, and `scheduler` puts them together.
"""

from bge_integrations.backend.scheduler.job import Job, Priority, TextFailedError
from bge_integrations.backend.scheduler.scheduler import Scheduler
from bge_integrations.backend.scheduler.statistics import Meter, Statistics
from bge_integrations.backend.scheduler.worker import EngineSlot

__all__ = ["EngineSlot", "Job", "Meter", "Priority", "Scheduler", "Statistics", "TextFailedError"]
