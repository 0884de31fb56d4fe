"""The checks of ``tgis doctor``; the fast ones also run before startup.

``checks.py`` is their table. Nothing here starts, writes or downloads anything; only a requested bug report is written.
Torch is never imported: checks about it use package metadata and the driver.
"""

from tgis_cli.doctor.bug_report import check_target, write_bug_report
from tgis_cli.doctor.checks import check_machine, run_checks
from tgis_cli.doctor.examine import examine
from tgis_cli.doctor.report import describe_verdicts, verdicts_as_dict
from tgis_cli.doctor.verdict import Level, Subject

__all__ = [
    "Level",
    "Subject",
    "check_machine",
    "check_target",
    "describe_verdicts",
    "examine",
    "run_checks",
    "verdicts_as_dict",
    "write_bug_report",
]
