"""Where the tests find files: the repository's own structures, and the larger data set where it is at hand."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser

# The models here are so small that a second thread only waits; also for the programs that tests start. Of several
# workers, each has one core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/proc/driver/nvidia").exists():
    # Without a GPU Triton kernels run as Python. Triton reads this when it is first imported, which libraries do.
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Leave libraries and tests out of garbage collection, as they stay to the end.

    There are half a million objects of them, which each collection would look at; trainers ask for one at every start.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Commands keep their messages from the root logger, where `caplog` listens: each test begins as a program does."""
    logger = logging.getLogger("protfold")
    logger.propagate = True
    yield
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def structures() -> Path:
    """The example structures that come with the repository."""
    return REPOSITORY / "structures"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder named by PROTFOLD_TEST_DATA; the test is skipped where it is not set or not there."""
    value = os.environ.get("PROTFOLD_TEST_DATA")
    if not value:
        pytest.skip("PROTFOLD_TEST_DATA is not set: the larger test data set is not at hand")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"PROTFOLD_TEST_DATA is {value}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()
