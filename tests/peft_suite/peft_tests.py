"""PEFT's own tests as modules, read from its source distribution, which ships them.

They are fetched once for each release of PEFT and kept in the user's cache; nothing of them is in this repository.
`PROTFOLD_PEFT_TESTS` names a folder that has them already (the `tests` folder of PEFT's source, or the one above it).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

VARIABLE = "PROTFOLD_PEFT_TESTS"
# The name under which PEFT's folder is imported. Its modules import each other relatively, so it has to be a package.
PACKAGE = "tests_of_peft"


class UnavailableError(Exception):
    """PEFT's tests are not at hand and cannot be fetched."""


def peft_tests(name: str) -> ModuleType:
    """One module of PEFT's tests, such as `test_custom_models`.

    Where they cannot be had, the test module that asks is skipped; under CI that is an error.
    """
    try:
        _make_package()
    except UnavailableError as error:
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            raise
        pytest.skip(str(error), allow_module_level=True)
    with _stand_ins():
        return importlib.import_module(f"{PACKAGE}.{name}")


@cache
def _make_package() -> None:
    package = ModuleType(PACKAGE)
    package.__path__ = [str(_folder())]
    pytest.register_assert_rewrite(PACKAGE)
    sys.modules[PACKAGE] = package


def _folder() -> Path:
    given = os.environ.get(VARIABLE)
    if given:
        for folder in (Path(given), Path(given, "tests")):
            if (folder / "testing_common.py").is_file():
                return folder
        raise UnavailableError(f"{VARIABLE} is {given}, which does not hold PEFT's tests (testing_common.py)")
    release = version("peft")
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "protfold-peft", f"peft-{release}")
    if not cached.is_dir():
        _fetch(release, cached)
    return cached / "tests"


def _fetch(release: str, destination: Path) -> None:
    """Put the `tests` folder of this release of PEFT under `destination`, whole or not at all."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        archive = _download(release, Path(scratch))
        unpacked = Path(scratch, "unpacked")
        with tarfile.open(archive) as file:
            root = file.getnames()[0].split("/")[0]
            members = [member for member in file if member.name.startswith(f"{root}/tests/")]
            file.extractall(unpacked, members, filter="data")
        try:
            (unpacked / root).rename(destination)
        except OSError:
            # Another run was faster; its copy is as good.
            if not destination.is_dir():
                raise


def _download(release: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", "peft", "--retries", "1", "--timeout", "20", "--dest", str(folder)]
    command.append(f"peft=={release}")
    said = ""
    # pip asks a source distribution for its metadata. With the setuptools at hand that takes a second; where there is
    # none, pip fetches one.
    for isolation in (["--no-build-isolation"], []):
        try:
            run = subprocess.run(
                [*command, *isolation, f"peft=={release}"], capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            said = "no answer in five minutes"
            continue
        if run.returncode == 0:
            return next(folder.glob("peft-*.tar.gz"))
        said = (run.stderr.strip() or "pip gave no reason").splitlines()[-1]
    raise UnavailableError(
        f"the tests of PEFT {release} could not be fetched ({said}); name a folder that holds them by {VARIABLE}"
    )


# Libraries that PEFT's tests import and that none of the tests run here use, with what is imported from them.
_UNUSED = {
    "datasets": {"load_dataset": None},
    "diffusers": {"StableDiffusionPipeline": type("StableDiffusionPipeline", (), {}), "__version__": "0"},
    "parameterized": {"parameterized": SimpleNamespace(expand=lambda rows: lambda function: function)},
}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """While PEFT's tests are imported, put something in the place of unused libraries that are not installed."""
    # These ask what is installed when they are first imported; they must not find the stand-ins.
    for name in ("accelerate.test_utils.testing", "peft", "transformers.trainer"):
        importlib.import_module(name)
    missing = [name for name in _UNUSED if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(_UNUSED[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
