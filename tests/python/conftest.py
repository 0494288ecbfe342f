"""Every test needs the built programs: a missing build is an error, not a skip."""

import pytest
import tools


def pytest_sessionstart(session):
    for program in (tools.MERGE, tools.INSPECT, tools.EVAL, tools.CONVERT):
        if not program.exists():
            raise pytest.UsageError(f"{program} is not built; set NPS_BUILDDIR to a build's folder")
