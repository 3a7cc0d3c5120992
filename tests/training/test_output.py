"""The output folder: refused, made whole, replaced without touching what is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from protfold_peft.errors import ConfigError
from protfold_peft.training import FinetuneConfig, folders, output, read_config

CONFIG = FinetuneConfig()


def fill(working: Path, text: str) -> None:
    for name in output.FILES:
        (working / name).write_text(f"{name} {text}")


def prepared(out: Path) -> Path:
    """The working folder of a run that may overwrite."""
    folders.check_free(out, overwrite=True)
    return output.make_working_folder(out, CONFIG)


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    working = output.make_working_folder(out, CONFIG)
    assert working == tmp_path / "runs" / "first.partial"
    assert not out.exists()
    fill(working, "new")
    output.publish(working, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(output.FILES)
    assert not working.exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for usable in ("empty", "absent"):
        folders.check_free(tmp_path / usable, overwrite=False)
    (tmp_path / "empty").rmdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not empty: name another folder with --out, or .* --overwrite"):
        folders.check_free(tmp_path, overwrite=False)
    with pytest.raises(ConfigError, match=r"thesis.tex is a file"):
        folders.check_free(tmp_path / "thesis.tex", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_replaces_our_files_and_no_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    (out / "notes.txt").write_text("mine")
    working = prepared(out)
    assert (out / output.ADAPTER_CONFIG).read_text().endswith("old")  # untouched until the run is done
    fill(working, "new")
    output.publish(working, out)
    assert {(out / name).read_text().split()[-1] for name in output.FILES} == {"new"}
    assert (out / "notes.txt").read_text() == "mine"


def test_a_crash_while_replacing_leaves_nothing_that_could_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old weights with a new configuration, or the other way round, would be worse than none."""
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    working = prepared(out)
    fill(working, "new")
    replace, moved = Path.replace, []

    def fail_on_the_third(self: Path, target: Path) -> Path:
        if len(moved) == 2:
            raise OSError("disk full")
        moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_the_third)
    with pytest.raises(OSError, match="disk full"):
        output.publish(working, out)
    assert not (out / output.ADAPTER_CONFIG).exists()


def test_nothing_moves_unless_everything_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    working = prepared(out)
    fill(working, "new")
    (working / output.ADAPTER_WEIGHTS).unlink()
    (working / output.MODEL_CONFIG).unlink()
    with pytest.raises(FileNotFoundError):
        output.publish(working, out)
    assert {(out / name).read_text().split()[-1] for name in output.FILES} == {"old"}


def test_leftovers_of_a_stopped_run_are_replaced(tmp_path: Path) -> None:
    working = output.make_working_folder(tmp_path / "out", CONFIG)
    fill(working, "stopped")
    again = output.make_working_folder(tmp_path / "out", CONFIG)
    assert again == working
    assert [path.name for path in again.iterdir()] == [output.CONFIG]
    assert read_config(again / output.CONFIG) == CONFIG
