"""Shared by all tests: helper modules beside the tests can be imported by name."""

import sys
from pathlib import Path

for folder in ("unit", "integration", "models"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
