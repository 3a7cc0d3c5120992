"""The command line as a whole: help on one screen, examples that can be typed, one set of options, JSON, completion."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from adapter_methods import make_config
from peft import get_peft_model
from tiny_models import save_tiny_esm
from transformers import EsmForMaskedLM
from typer.testing import CliRunner

from protfold_peft.cli.common import print_json
from protfold_peft.cli.main import app, main

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = typer.main.get_command(app)
# Not pydantic: typer reads arguments with it where it is installed.
HEAVY = ("torch", "transformers", "peft", "numpy", "yaml", "matplotlib", "gemmi", "rich.progress")


def commands():
    """Every command that does something, by the words that call it."""
    for name, command in ROOT.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield (name,), command
        else:
            yield from (((name, sub), each) for sub, each in inner.items())


COMMANDS = dict(commands())


def options_of(command) -> dict[str, object]:
    return {name: parameter for parameter in command.params for name in parameter.opts if name.startswith("--")}


def run(*words: object, **options):
    environment = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(app, [str(word) for word in words], env=environment, **options)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_help_is_one_screen_with_a_line_for_every_command():
    shown = plain(run("--help").stdout)
    lines = shown.rstrip().splitlines()
    assert len(lines) <= 36
    for name in ROOT.commands:
        [line] = [line for line in lines if re.match(rf"│ {name} ", line)]
        # A description that ended on the next line would lack its full stop.
        assert line.rstrip(" │").endswith("."), line
    assert "130 interrupted" in shown


@pytest.mark.parametrize("words", [(), ("adapter",), ("lm",), ("predict",), ("finetune",), ("doctor",), ("init",)])
def test_help_imports_nothing_heavy(words):
    code = (
        f"import sys; sys.argv = ['protfold', *{words!r}, '--help']\n"
        "from protfold_peft.cli.main import app\n"
        "app(standalone_mode=False)\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [told] = re.findall(r"HEAVY \[\] (\d+)", done.stdout)
    # Python with typer and rich has some 500; one of the heavy packages brings as many again.
    assert int(told) < 800


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_example_can_be_typed(words):
    """Each is read by the command's own parser: an option that is not there, or lacks its value, fails."""
    text = plain(COMMANDS[words].epilog or "")
    examples = re.findall(r"`(.+?)`", text)
    assert examples
    called = 0
    for example in examples:
        for part in re.split(r"&&|\||>", example):
            typed = shlex.split(part)
            if typed[:1] == ["protfold"] and tuple(typed[1 : 1 + len(words)]) == words:
                COMMANDS[words].make_context("protfold", typed[1 + len(words) :])
                called += 1
    assert called >= len(examples)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_one_set_of_options(words):
    command = COMMANDS[words]
    options = options_of(command)
    assert "--debug" in options
    if words[0] != "adapter":
        assert "--verbose" in options
    # What a program may read is JSON everywhere; two commands write it to a file of any name, - for standard output.
    if words not in {("convert",), ("bench",)}:
        assert "--json" in options
        assert options["--json"].is_flag is (words not in {("evaluate",), ("lm", "evaluate")})
    for name, short in (("--out", "-o"), ("--verbose", "-v")):
        if name in options:
            assert short in options[name].opts


def test_exit_statuses_are_documented_where_they_are_promised():
    text = (REPOSITORY / "docs" / "command_line.md").read_text()
    for status in ("0", "1", "2", "130"):
        assert re.search(rf"^\| {status} \|", text, re.MULTILINE), status
    for words in COMMANDS:
        assert f"`protfold {' '.join(words)}`" in text, words


def complete(typed: str) -> list[str]:
    """What the shell is told for `typed`, by the way that the installed completion asks."""
    code = (
        "import sys; sys.argv = ['protfold']\n"
        "import atexit\n"
        f"atexit.register(lambda: print('HEAVY', [n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr))\n"
        "from protfold_peft.cli.main import app\n"
        "app(prog_name='protfold')"
    )
    words = typed.split(" ")
    asked = {"_PROTFOLD_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    assert "HEAVY []" in done.stderr
    return done.stdout.split()


def test_completion_knows_commands_and_options_and_imports_nothing_heavy():
    assert complete("protfold pre") == ["predict", "prepare"]
    assert "--adapter" in complete("protfold predict --a")
    assert set(complete("protfold adapter ")) == set(ROOT.commands["adapter"].commands)


def test_completion_is_installed_for_bash(tmp_path):
    code = "import sys; sys.argv[0] = 'protfold'\nfrom protfold_peft.cli.main import app\napp(prog_name='protfold')"
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "SHELL": "/bin/bash",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    shown = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "_PROTFOLD_COMPLETE=complete_bash" in shown.stdout
    subprocess.run([sys.executable, "-c", code, "--install-completion", "bash"], check=True, env=environment)
    installed = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_PROTFOLD_COMPLETE=complete_bash" in text for text in installed)
    # Bash itself takes the script.
    script = tmp_path / "script.sh"
    script.write_text(shown.stdout)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_json_has_null_where_there_is_no_number(capsys):
    print_json({"a": float("nan"), "b": [float("-inf"), 1.5], "c": Path("x"), "d": (1, None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x", "d": [1, None]}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny_esm(folder / "base")
    adapted = get_peft_model(EsmForMaskedLM.from_pretrained(base), make_config("lorta", r=2, target_modules=["query"]))
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_json_of_the_adapter_commands_is_one_document(adapter, tmp_path):
    made = tmp_path / "lora"
    told = json.loads(run("adapter", "to-lora", adapter, made, "--json").stdout)
    assert told["out"] == str(made)
    assert told["residual"] == 0
    assert told["parameters"] == json.loads(run("adapter", "info", made, "--json").stdout)["parameters"]
    told = json.loads(run("adapter", "combine", adapter, f"{adapter}=0.5", "-o", tmp_path / "sum", "--json").stdout)
    assert told["rank"] == json.loads(run("adapter", "info", tmp_path / "sum", "--json").stdout)["rank"] == 4


def test_the_output_folder_is_given_once(adapter, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for words in ((), (one, "--out", other)):
        result = run("adapter", "to-lora", adapter, *words)
        assert result.exit_code == 2
        assert result.stderr == "error: give the folder to write once: as OUT, or with --out\n"
    assert run("adapter", "to-lora", adapter, "--out", other).exit_code == 0
    assert (other / "adapter_model.safetensors").exists()
    result = run("adapter", "combine", tmp_path / "nothing")
    assert (result.exit_code, result.stderr[:30]) == (2, "error: no adapter to combine: ")


def test_json_of_a_comparison_that_has_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = ["finetune.data.folder=structures", "finetune.data.table=null", "finetune.data.where={}"]
    words += ["finetune.data.validation={folder: structures}", "finetune.data.outside=null"]
    words += [
        "targets={t: {folder: structures}}",
        "lora=null",
        "methods={lorta: {method: lorta, ranks: [1, 2], learning_rates: [0.01]}}",
        "seeds=[0]",
    ]
    result = run(
        "compare", "configs/compare_family.yaml", *words, "--out", tmp_path, "--allow-leakage", "--list", "--json"
    )
    assert result.exit_code == 0, result.stderr
    cells = json.loads(result.stdout)["cells"]
    assert [cell["index"] for cell in cells] == list(range(len(cells)))
    assert len(cells) >= 2
    assert {cell["failure"] for cell in cells} == {None}


def test_json_of_predict_prepare_and_data(tmp_path, structures):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">good\nMKTAYIAK\n>bad\nMK-T\n")
    result = run("predict", fasta, "-o", tmp_path / "p", "--recycles", 0, "--no-plots", "--no-report", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["folded"], told["invalid"]) == (1, 1)
    rows = {row["name"]: row for row in told["records"]}
    scores = json.loads((tmp_path / "p" / "good_scores.json").read_text())
    assert rows["good"]["plddt"] == pytest.approx(sum(scores["plddt"]) / len(scores["plddt"]), abs=0.01)
    assert rows["bad"]["status"] == "invalid"
    result = run("prepare", structures, "-o", tmp_path / "d", "--processes", 1, "--json")
    told = json.loads(result.stdout)
    assert told == {"out": str(tmp_path / "d"), **json.loads((tmp_path / "d" / "report.json").read_text())}


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_wait_awake_for_a_moment_only(given, used, monkeypatch):
    """Set before torch is there to read it, and never against the user's own choice."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["protfold", "--version"])
    monkeypatch.setattr(logging, "raiseExceptions", True)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (0, None)
    assert os.environ.get("GOMP_SPINCOUNT") == used
