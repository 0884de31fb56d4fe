"""Decides which sequences run in the next step and where their keys and values are. No torch, no I/O, no clock."""

from tgis_server.scheduler.budget import StepLoad
from tgis_server.scheduler.limits import SchedulerLimits
from tgis_server.scheduler.scheduler import Scheduler

__all__ = ["Scheduler", "SchedulerLimits", "StepLoad"]
