"""What damaged files brought to light, each kept as the smallest file that did."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import typer
from adapter_methods import make_config
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from tiny_models import save_tiny_esm
from transformers import EsmForMaskedLM
from typer.testing import CliRunner

from protfold_peft.adapters import load_adapter
from protfold_peft.adapters.folders.info import adapter_info
from protfold_peft.cli.common import error_boundary
from protfold_peft.cli.encoding import use_utf8
from protfold_peft.cli.main import _tell_of_thread, app
from protfold_peft.configuration import read_yaml
from protfold_peft.data.prepare import search
from protfold_peft.errors import CheckpointError, ConfigError, DataError, ProtfoldError
from protfold_peft.files import named_in, naming, replacing
from protfold_peft.language.records import read_records
from protfold_peft.runtime import LOGGER, configure_logging


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_esm(tmp_path_factory.mktemp("base"))


def saved(base: Path, folder: Path, settings, **changes: object) -> Path:
    """An adapter whose configuration is changed after it was saved."""
    get_peft_model(EsmForMaskedLM.from_pretrained(base), settings).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_control_character_in_yaml_is_told_in_one_line(tmp_path):
    """PyYAML's own message has two."""
    path = tmp_path / "run.yaml"
    path.write_bytes(b"out: a\x1ab\n")
    with pytest.raises(ConfigError) as found:
        read_yaml(path)
    assert str(found.value).startswith(f"{path}: not valid YAML: unacceptable character #x001a")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("changes", [{"dropout": None}, {"alpha": "x"}, {"taks_type": None}, {"layout": None}])
def test_a_configuration_that_cannot_be_names_its_folder(base, tmp_path, changes):
    """What was wrong was told, and not where."""
    folder = saved(base, tmp_path / "adapter", make_config("lorta", target_modules=["query"]), **changes)
    for read in (adapter_info, lambda path: load_adapter(EsmForMaskedLM.from_pretrained(base), path)):
        with pytest.raises((ConfigError, CheckpointError), match=str(folder)) as found:
            read(folder)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("changes", [{"lora_dropout": None}, {"target_modules": None}])
def test_a_configuration_that_pefts_methods_cannot_use_is_our_error(base, tmp_path, changes):
    """PEFT fails where it first uses the value, with TypeError or ValueError."""
    folder = saved(base, tmp_path / "lora", LoraConfig(r=2, target_modules=["query"]), **changes)
    if changes == {"target_modules": None}:
        # Without targets PEFT looks up those of the model's type, and knows none for this name.
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_parameters": None}))
    model = EsmForMaskedLM.from_pretrained(base)
    model.config.model_type = "unheard-of"
    with pytest.raises(CheckpointError, match=str(folder)):
        load_adapter(model, folder)


@pytest.mark.parametrize("command", ["init", "data"])
def test_a_folder_where_nothing_can_be_made_is_told_by_the_systems_words(structures, command):
    """Before, these were called unexpected errors."""
    out = "/proc/nowhere/made"
    words = {
        "init": ["init", str(structures), "-o", out],
        "data": ["data", "casp14", "--from", str(structures), "-o", out],
    }
    result = CliRunner().invoke(app, words[command])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: /proc/nowhere")
    assert "unexpected" not in result.stderr


def test_a_full_disk_as_rust_tells_it_is_told_as_such(capsys):
    """Safetensors has an error of its own for it; before, that was called unexpected."""
    with pytest.raises(typer.Exit) as left, error_boundary():
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == "error: a file could not be written or read: No space left on device\n"


def test_a_thread_that_fails_is_told_in_a_line(monkeypatch, capsys):
    """TensorBoard's log has a thread of its own, which a full disk ended with a traceback on the screen."""
    configure_logging()
    monkeypatch.setattr(threading, "excepthook", _tell_of_thread)
    thread = threading.Thread(target=os.close, args=(-1,), name="writer")
    thread.start()
    thread.join()
    LOGGER.handlers.clear()
    assert capsys.readouterr().err == "WARNING: writer: OSError: [Errno 9] Bad file descriptor\n"


def test_a_write_that_finds_the_disk_full_names_its_file(tmp_path):
    """The system's own error of a write has no name in it."""

    def write() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as found:
        write()
    assert found.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_a_column_with_a_line_end_is_told_in_one_line(tmp_path):
    """The message quotes the names that a table has."""
    path = tmp_path / "records.csv"
    path.write_text('"one\nthing\u2028more",two\n1,2\n', encoding="utf-8")
    with pytest.raises(DataError) as found:
        list(read_records(str(path), wanted=("text",)))
    assert str(found.value).startswith(f"{path}, line 1: no column 'text'; the first line names one thing more, two")
    assert len(str(found.value).splitlines()) == 1


def program(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python under the program's name."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'protfold'\n{code}", *words],
        env={**{name: value for name, value in os.environ.items() if not name.startswith("LC_")}, **environment},
        capture_output=True,
        encoding="utf-8",
        # Whoever started the tests may ignore it, as a shell has it of what it runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_word_outside_ascii_is_understood_in_a_locale_without_it():
    """Python hands on its bytes as letters that have no UTF-8, at which libraries and writers of files failed."""
    main = "from protfold_peft.cli.main import main; main()"
    ended = program(main, "\N{GREEK SMALL LETTER ALPHA}", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert ended.returncode == 2
    assert "'\N{GREEK SMALL LETTER ALPHA}'" in ended.stderr


@pytest.mark.skipif(os.name != "posix", reason="names of files are UTF-8 there already")
@pytest.mark.parametrize(
    ("encoding", "mode", "again"),
    [("ascii", "0", True), ("iso8859-1", None, True), ("utf-8", None, False), ("ascii", "1", False)],
)
def test_the_program_starts_again_once_and_only_where_it_must(monkeypatch, encoding, mode, again):
    started = []
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "error", "-m", "protfold_peft", "predict"])
    monkeypatch.setenv("PYTHONUTF8", mode or "")
    if mode is None:
        monkeypatch.delenv("PYTHONUTF8")
    use_utf8()
    words = [sys.executable, "-X", "utf8", "-W", "error", "-m", "protfold_peft", "predict"]
    assert started == ([(sys.executable, words)] if again else [])
    # What the program starts later finds it there.
    assert os.environ.get("PYTHONUTF8") == ("1" if again else mode)


def test_an_interruption_before_a_command_begins_is_one_line():
    """While modules are imported there is no command yet that could tell of it."""
    ended = program("import os, signal, protfold_peft.cli.main\nos.kill(os.getpid(), signal.SIGINT)")
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


def test_an_interruption_of_a_command_lets_it_tidy_up():
    """From its beginning on, Ctrl-C is an exception, also where nothing was interrupted before."""
    code = (
        "import os, signal, typer\nfrom protfold_peft.cli.common import error_boundary\ntry:\n"
        "    with error_boundary():\n        try:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "        finally:\n            print('tidied')\nexcept typer.Exit as left:\n    sys.exit(left.exit_code)"
    )
    ended = program(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "tidied\n", "interrupted\n")


def test_an_ignored_interruption_stays_ignored():
    """As a shell has it of what it runs in the background."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nimport os, protfold_peft.cli.main\n"
    ended = program(code + "os.kill(os.getpid(), signal.SIGINT); print('went on')")
    assert (ended.returncode, ended.stdout) == (0, "went on\n")


def test_a_name_that_is_no_text_is_told(capsys, tmp_path):
    """A file named by a program of another age, met where a name has to be written down."""
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(typer.Exit) as left, error_boundary():
        (tmp_path / "list.txt").write_text(f"first\n in: {name} \nlast\n", encoding="utf-8")
    assert left.value.exit_code == 2
    told = capsys.readouterr().err
    assert told == "error: 'in: caf\\udce9' is not in UTF-8: give the file or folder another name\n"


@pytest.mark.skipif(os.name != "posix", reason="the program in the place of MMseqs2 is a shell script")
def test_an_interrupted_search_stops_all_its_programs_and_leaves_nothing(tmp_path, monkeypatch):
    """They went on writing, and the folder that they wrote into could not be removed."""
    script = tmp_path / "mmseqs"
    writing = "for i in $(seq 300); do mkdir -p tmp/$i; echo x > tmp/$i/x; sleep 0.01; done"
    script.write_text(f"#!/bin/sh\n({writing}) &\nsleep 0.1; kill -INT $PPID\nwait\n")
    script.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(search, "_PROGRAM", str(script))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            search.mmseqs_candidates(["MKTAYIAKQR"], ["MKTAYIAKQR"], 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "told",
    [
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:672] . unexpected pos 5312 vs 5204",
    ],
)
def test_a_full_disk_as_torch_tells_it_names_the_folder(tmp_path, told):
    """The optimizer's state of a language run; before, these were called unexpected."""
    with (
        pytest.raises(ProtfoldError, match="run: a file could not be written"),
        naming(tmp_path / "run"),
    ):
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another"), naming(tmp_path / "run"):
        raise RuntimeError("another error")


@pytest.mark.parametrize("name", ["~\0a", "~nobody-of-this-name/a.pdb", "x" * 5000])
def test_a_table_may_name_what_no_file_can_be_called(tmp_path, name):
    assert named_in(tmp_path / "pairs.csv", name) == Path(name)
    (tmp_path / "one.pdb").touch()
    assert named_in(tmp_path / "pairs.csv", "one.pdb") == tmp_path / "one.pdb"
