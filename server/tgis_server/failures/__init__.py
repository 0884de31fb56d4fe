"""The catalogue of failures that end startup or a running server.

Each row says how the failure is recognised, what is said about it, and what its exit code is. Code raises
``failures.PORT_IN_USE.error(port=8033, ...)``; docs/failures.md is generated from the same rows. A sentence states what
happened, with values, and what to do. Errors of single requests belong to the public contract and are not listed here.
"""

# ruff: noqa: F403  every row can be imported from here

from tgis_server.failures import hangs, machine, model_files, options, peers, processes
from tgis_server.failures.failure import Failure as Failure
from tgis_server.failures.hangs import *
from tgis_server.failures.machine import *
from tgis_server.failures.model_files import *
from tgis_server.failures.options import *
from tgis_server.failures.peers import *
from tgis_server.failures.processes import *

AREAS = (options, model_files, machine, processes, hangs, peers)  # in the order of exit codes
CATALOGUE: tuple[Failure, ...] = tuple(row for area in AREAS for row in vars(area).values() if isinstance(row, Failure))
