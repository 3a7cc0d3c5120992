"""Fixtures for PEFT's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_suite.models import write_models
from peft_suite.peft_tests import PACKAGE


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny model."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(autouse=True)
def _models_at_hand(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where the models are, so that a model's name is its folder; and never ask the hub."""
    monkeypatch.chdir(models_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = ["MLP", "EmbConv1D", *(folder.name for folder in models_folder.iterdir())]
    # PEFT's tests go online for a model that they meet for the first time.
    monkeypatch.setattr(f"{PACKAGE}.testing_utils._HUB_MODEL_ACCESSES", dict.fromkeys(names, 1))


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Most of PEFT's tests draw weights from the global generator as they find it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def in_place_of_lora(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration class that is the parameter stands under LoRA's name in the test's module."""
    config_class = request.param

    def make(**options: Any) -> Any:
        options["init_weights"] = options.pop("init_lora_weights", True)
        options.pop("lora_alpha", None)
        return config_class(**options)

    monkeypatch.setitem(request.function.__globals__, "LoraConfig", make)


@pytest.fixture(autouse=True)
def _mixed_batches_are_supported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's tests of `adapter_names` in generation skip every class but LoRA's: there, ours is LoRA's."""
    if request.node.originalname in ("test_mixed_adapter_batches", "test_generate_with_mixed_adapter_batches"):
        config_class = request.node.callspec.params["config_cls"]
        monkeypatch.setitem(request.function.__globals__, "LoraConfig", config_class)
        monkeypatch.setattr(f"{PACKAGE}.testing_common.LoraConfig", config_class)


@pytest.fixture(autouse=True)
def _bearable_learning_rate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This test trains by plain descent on inputs up to 89, at a rate of 0.5, at which two adapted layers diverge.

    PEFT lists its own methods for which it takes 0.01; ours join the last of them.
    """
    if request.node.originalname == "test_parameters_after_loading_model":
        known = request.function.__globals__
        monkeypatch.setitem(known, "OSFConfig", (known["OSFConfig"], request.node.callspec.params["config_cls"]))
