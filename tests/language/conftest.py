"""The language data, tiny random models, and a tokenizer of single letters for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import letters_tokenizer, save_tiny_esm, save_tiny_llama, save_tiny_roberta
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.runtime import LOGGER


@pytest.fixture(scope="session")
def language_data(test_data: Path) -> Path:
    """The language model and texts of the test data; the test is skipped where they are not there."""
    folder = test_data / "language"
    if not (folder / "stories260K" / "model.safetensors").is_file():
        pytest.skip(f"{folder} does not hold the language model stories260K")
    return folder


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """A token for every letter."""
    return letters_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Llama with grouped-query attention, for the letters' tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, for comparisons to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, letters: PreTrainedTokenizerFast) -> Path:
    """The tiny Llama with its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copytree(tiny_llama_folder, folder, dirs_exist_ok=True)
    letters.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory, letters: PreTrainedTokenizerFast) -> Path:
    """A saved random RoBERTa with a masked-LM head, and its tokenizer of letters."""
    return save_tiny_roberta(tmp_path_factory.mktemp("roberta"), letters)


@pytest.fixture(scope="session")
def esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random ESM-2 that the tiny folding model has the same size as."""
    return save_tiny_esm(tmp_path_factory.mktemp("esm"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that writes a file below the test's folder."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def lm(tmp_path: Path) -> Callable[..., Any]:
    """A function that runs `protfold lm TASK` with a configuration given as a dictionary."""

    def invoke(task: str, config: dict[str, Any], *arguments: object) -> Any:
        path = tmp_path / f"{task}.yaml"
        path.write_text(yaml.safe_dump({"task": task, **config}), encoding="utf-8")
        try:
            return CliRunner().invoke(app, ["lm", task, str(path), *(str(argument) for argument in arguments)])
        finally:
            # The log went to a screen that is no longer there.
            LOGGER.handlers.clear()

    return invoke
