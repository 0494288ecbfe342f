"""Every test needs the built programs: a missing build is an error, not a skip."""

import signal

import pytest
import tools


def pytest_sessionstart(session):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # fixtures end what they have started
    for program in (tools.MERGE, tools.INSPECT, tools.EVAL, tools.CONVERT):
        if not program.exists():
            raise pytest.UsageError(f"{program} is not built; set NPS_BUILDDIR to a build's folder")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Calibration data of tools.small_search()."""
    path = tmp_path_factory.mktemp("data") / "calibration.h5"
    return tools.write_small_data(path, 32)


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    """What tools.small_search() gives on one rank, never interrupted: tools.search_content()."""
    out = tmp_path_factory.mktemp("whole") / "out.h5"
    tools.merge(tools.small_search(data), out)
    return tools.search_content(out)


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """16 samples of each task."""
    path = tmp_path_factory.mktemp("few") / "calibration.h5"
    return tools.write_small_data(path, 16)


@pytest.fixture
def shared(tmp_path):
    """Where models are handed over to commands; nothing may be left there."""
    folder = tmp_path / "shared"
    folder.mkdir()
    yield folder
    assert tools.wait_for(lambda: not list(folder.iterdir())), list(folder.iterdir())
