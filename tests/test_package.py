"""The installed package: what an installation has to bring along beside its modules."""

from __future__ import annotations

import re
from importlib import metadata, resources
from pathlib import Path

import pytest

import protfold_peft
from protfold_peft import runtime
from protfold_peft.cli.main import main
from protfold_peft.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent


def test_the_version_is_one() -> None:
    """Of the installation, the package, and the newest entry of the changelog."""
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert metadata.version("protfold-peft") == protfold_peft.__version__ == newest[1]


def test_the_command_is_installed() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="protfold")
    assert command.load() is main


def test_files_that_are_no_modules_are_installed() -> None:
    """Types for users' checkers, the built-in model, the pages of the reports: all that the repository has."""
    here, installed = REPOSITORY / "protfold_peft", resources.files("protfold_peft")
    files = [path for path in here.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    names = [path.relative_to(here) for path in files]
    assert Path("py.typed") in names
    assert Path("folding", "protfold_mini", "model.safetensors") in names
    for name in names:
        assert installed.joinpath(*name.parts).read_bytes() == (here / name).read_bytes(), name


@pytest.mark.parametrize(("found", "said"), [(None, "0.47 or newer: pip"), ("0.46.1", "0.47 or newer, and 0.46.1 is")])
def test_an_unfit_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch, found: str | None, said: str) -> None:
    def version(name: str) -> str:
        assert name == "bitsandbytes"
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(runtime, "version", version)
    with pytest.raises(ConfigError, match=rf"^model.quantize=8bit needs bitsandbytes {re.escape(said)}"):
        runtime.require_bitsandbytes("model.quantize=8bit")


def test_the_least_bitsandbytes_is_that_of_the_tests() -> None:
    declared = [line for line in metadata.requires("protfold-peft") or () if line.startswith("bitsandbytes")]
    assert [re.split("[;,]", line)[0].strip() for line in declared] == [f"bitsandbytes>={runtime.LEAST_BITSANDBYTES}"]
