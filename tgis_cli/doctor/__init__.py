"""What ``tgis doctor`` finds out about a machine, and what a start looks at before it starts anything.

One file per theme has the checks; ``checks.py`` is their table. Nothing here starts, writes or downloads anything, but
for the bug report that is asked for. Torch is never imported: whatever needs it is told from versions and drivers.
"""

from tgis_cli.doctor.bug_report import check_target, write_bug_report
from tgis_cli.doctor.checks import check_machine, run_checks
from tgis_cli.doctor.examine import examine
from tgis_cli.doctor.report import as_dict, describe
from tgis_cli.doctor.verdict import Context, Level

__all__ = [
    "Context",
    "Level",
    "as_dict",
    "check_machine",
    "check_target",
    "describe",
    "examine",
    "run_checks",
    "write_bug_report",
]
