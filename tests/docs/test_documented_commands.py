"""The commands in the README and the documentation: their options, and the configuration keys they set, exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from protfold_peft.cli.main import app
from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.language.config import CONFIGS
from protfold_peft.training.config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
pages = pytest.importorskip(
    "site_pages.configuration", reason="the extra 'docs' is not installed", exc_type=ImportError
)

PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
CONFIGURED: dict[str, type[BaseModel]] = {
    "finetune": FinetuneConfig,
    "compare": ComparisonConfig,
    **{f"lm {task}": kind for task, kind in CONFIGS.items()},
}
# A line of code, or of a YAML file's first comment, in which the program is called; comments behind it go.
CALL = re.compile(r"^(?:#? {4,}|[^`#|]*\| )?(?:[A-Z_]+=\S+ )*protfold(?: [a-z].*)?$")


def calls() -> Iterator[tuple[str, str]]:
    """Page and command of every call, continued lines joined."""
    for path in sorted(PAGES):
        text = re.sub(r"\s*\\\n[#\s]*", " ", path.read_text(encoding="utf-8"))
        for line in text.split("\n"):
            line = re.sub(r"^(.*&& )(?=protfold)", "    ", line)
            if "protfold " in line and CALL.match(line) and "CONFIG.yaml [" not in line:
                words = line[line.index("protfold ") :]
                yield path.relative_to(ROOT).as_posix(), re.split(r"\s{2,}|\s#|\s&$", words)[0].removesuffix(" &")


CALLS = sorted(set(calls()))


def known(kind: type[BaseModel], dotted: str) -> bool:
    """Whether a key exists, on any level; the names of methods, targets and table columns are the user's."""
    keys = {key.name for group in pages.groups_of(kind, {}) for key in group.keys}
    generic = re.sub(r"^(methods|targets)\.[^.]+", r"\1.NAME", dotted)
    return generic in keys or (generic.rpartition(".")[0] in keys and ".where." in generic)


def test_there_are_calls() -> None:
    seen = {page for page, _ in CALLS}
    assert {"README.md", "docs/predict.md", "docs/howto/slurm.md", "configs/first_run.yaml"} <= seen
    assert len(CALLS) > 60


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_options_and_keys_exist(page: str, call: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(call)[1:]
    path: list[str] = []
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"{page}: no command {' '.join([*path, words[0]])}"
        command = command.commands[words[0]]
        path.append(words.pop(0))
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and len(word) > 1:
            assert word.split("=")[0] in {*options, "--help", "-h"}, f"{page}: {call}"
    kind = CONFIGURED.get(" ".join(path))
    for word in words if kind is not None else ():
        if re.match(r"[a-z_]+(\.[a-z_0-9]+)*=", word):
            key, _, value = word.partition("=")
            assert known(kind, key), f"{page}: {key} in: {call}"
            yaml.safe_load(value)
        elif word.startswith("configs/"):
            assert (ROOT / word).is_file(), f"{page}: {call}"
