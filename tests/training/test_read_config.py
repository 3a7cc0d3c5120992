"""Configurations: what is read, and what every kind of mistake is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from protfold_peft.configuration import known_keys, nearest_key
from protfold_peft.errors import ConfigError
from protfold_peft.training import FinetuneConfig, read_config
from protfold_peft.training.output import config_yaml

FIRST_RUN = Path(__file__).resolve().parents[2] / "configs" / "first_run.yaml"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_values_and_overrides(write) -> None:
    path = write("out: here\nadapter:\n  rank: 4\ntraining:\n  learning_rate: 1e-3\n  steps: 7\n")
    config = read_config(path, ["training.steps=9", "data.folder=my folder", "model.name=null", "loss.fape=1"])
    assert (config.out, config.adapter.rank, config.training.steps) == ("here", 4, 9)
    assert config.training.learning_rate == 0.001  # YAML 1.1 has this as text
    assert config.data.folder == "my folder"
    assert config.model.name is None
    assert config.loss.fape == 1.0


def test_an_empty_file_is_all_defaults(write) -> None:
    assert read_config(write("# nothing yet\n")) == FinetuneConfig()


def test_the_saved_configuration_reads_back(write) -> None:
    config = read_config(FIRST_RUN, ["training.steps=3", "adapter.alpha=2.5"])
    assert read_config(write(config_yaml(config))) == config


def test_first_run_shows_every_knob_with_a_comment() -> None:
    text = FIRST_RUN.read_text()
    read_config(FIRST_RUN)
    data = yaml.safe_load(text)
    shown = {f"{group}.{key}" for group, keys in data.items() if isinstance(keys, dict) for key in keys} | {
        "out",
        "mode",
    }
    assert shown == set(known_keys(FinetuneConfig))
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  ") and not line.strip().startswith("#"):
            assert lines[number - 1].strip().startswith("#"), f"line {number + 1} has no comment: {line}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: x\na: 1\n", "line 2: unknown key 'a'; known: out, .*training"),
        ("training:\n  learning_rat: 3\n", "line 2: unknown key 'training.learning_rat'; did you mean 'training.learn"),
        ("\nsteps: 3\n", "line 2: unknown key 'steps'; did you mean 'training.steps'"),
        ("training:\n  stops: [1]\n", "line 2: unknown key 'training.stops'; did you mean 'training.steps'"),
        ("training:\n  steps: 3.5\n", "line 2: training.steps=3.5: input should be a valid integer"),
        ("training:\n  steps: 0\n", "line 2: training.steps=0: input should be greater than or equal to 1"),
        ("training:\n  steps: '5'\n", "line 2: training.steps='5': input should be a valid integer"),
        (
            "model:\n  gradient_checkpointing: 1\n",
            "line 2: model.gradient_checkpointing=1: input should be a valid bool",
        ),
        ("training:\n  learning_rate: fast\n", "line 2: training.learning_rate='fast': input should be a valid number"),
        ("training:\n  learning_rate: .nan\n", "line 2: training.learning_rate=nan: input should be a finite number"),
        ("adapter:\n  target_modules: query\n", "line 2: adapter.target_modules='query': input should be a valid list"),
        ("training: 5\n", "line 1: 'training' is a group of keys, not a value; known: training.steps"),
        ("loss:\n  fape: 1\n  fape: 2\n", "line 3: 'loss.fape' is given twice, first in line 2"),
        ("training:\n  steps: [1\n", "line 3: not valid YAML"),
        ("- a\n- b\n", "'key: value' lines, this is a list"),
        ("training:\n  steps: 0\n  seed: -1\n", r"steps=0.*\(and 1 more\)"),
    ],
)
def test_mistakes_name_file_line_key_and_remedy(write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(write(text))
    assert str(caught.value).count("\n") == 0
    assert "run.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rankk=4", "override 'adapter.rankk=4': unknown key 'adapter.rankk'; did you mean 'adapter.rank'"),
        ("rank=4", "unknown key 'rank'; did you mean 'adapter.rank'"),
        ("adapter.rank", "write it as group.key=value"),
        ("=4", "write it as group.key=value"),
        ("adapter.rank=[1", "not valid YAML"),
        ("adapter.rank=high", "override 'adapter.rank=high': adapter.rank='high': input should be a valid integer"),
        ("adapter.rank.x=1", "'rank' is not a group of keys"),
        ("training=", "is a group of keys"),
    ],
)
def test_mistakes_in_overrides(write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(write("adapter:\n  rank: 2\n"), [override])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot be read: No such file"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        read_config(tmp_path / "binary.yaml")


def test_nothing_near_is_not_guessed() -> None:
    assert nearest_key(known_keys(FinetuneConfig), "training.zzz") is None
    assert nearest_key(known_keys(FinetuneConfig), "model.crop_size") == "data.crop_size"
