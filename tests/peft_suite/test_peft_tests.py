"""PEFT's tests are found, fetched and unpacked with care, and never missed in silence."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft_suite import peft_tests as subject


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    subject._make_package.cache_clear()
    yield
    subject._make_package.cache_clear()


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            file.addfile(member, io.BytesIO(b"#"))
    return path


@pytest.mark.parametrize("inside", ["", "tests"])
def test_a_ready_folder_is_used(monkeypatch, tmp_path, inside):
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "testing_common.py").touch()
    monkeypatch.setenv(subject.VARIABLE, str(tmp_path))
    assert subject._folder() == tmp_path / inside


def test_without_them_a_module_is_skipped_and_under_ci_fails(monkeypatch, tmp_path):
    monkeypatch.setenv(subject.VARIABLE, str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"does not hold PEFT's tests"):
        subject.peft_tests("test_custom_models")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(subject.UnavailableError, match=str(tmp_path)):
        subject.peft_tests("test_custom_models")


def test_only_the_tests_are_unpacked(monkeypatch, tmp_path):
    names = ("peft-1/setup.py", "peft-1/tests/testing_common.py", "peft-1/tests/deeper/a.py")
    monkeypatch.setattr(subject, "_download", lambda release, folder: archive(folder / "peft-1.tar.gz", *names))
    subject._fetch("1", tmp_path / "cache" / "peft-1")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    assert found == {"cache/peft-1/tests/testing_common.py", "cache/peft-1/tests/deeper/a.py"}


def test_an_archive_that_leaves_its_folder_is_refused(monkeypatch, tmp_path):
    names = ("peft-1/tests/testing_common.py", "peft-1/tests/../../../../escaped.py")
    monkeypatch.setattr(subject, "_download", lambda release, folder: archive(folder / "peft-1.tar.gz", *names))
    with pytest.raises(tarfile.OutsideDestinationError):
        subject._fetch("1", tmp_path / "cache" / "peft-1")
    assert not list(tmp_path.rglob("*.py"))
