"""Who runs in the next step and where its keys and values live. Plain Python: no torch, no I/O, no clock of its own."""

from tgis_server.scheduler.budget import StepLoad
from tgis_server.scheduler.limits import SchedulerLimits
from tgis_server.scheduler.scheduler import Scheduler

__all__ = ["Scheduler", "SchedulerLimits", "StepLoad"]
