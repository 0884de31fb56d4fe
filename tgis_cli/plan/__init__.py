"""What a model needs and where it fits, from config.json and the headers of its weights, without starting anything.

Uses the launcher's ``resolve`` and the engine's arithmetic, so a plan and a launch cannot disagree.
"""

from tgis_cli.plan.devices import Devices, read_devices
from tgis_cli.plan.report import PlanReport, make_report
from tgis_cli.plan.source import open_model
from tgis_cli.plan.text import describe_report

__all__ = ["Devices", "PlanReport", "describe_report", "make_report", "open_model", "read_devices"]
