"""The configurations that come with the repository are valid and say what the LoRTA authors report."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from protfold_peft.configuration import known_keys
from protfold_peft.errors import ConfigError
from protfold_peft.language import ClassifyConfig, DpoConfig, SftConfig, read_config
from protfold_peft.language.config import CONFIGS
from protfold_peft.language.run import make_task

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"
LANGUAGE = sorted(path for path in CONFIG_FOLDER.rglob("*.yaml") if "task" in (yaml.safe_load(path.read_text()) or {}))
# Epochs; learning rates of classifier and adapter.
AUTHORS = {
    "base": {
        "sst2": (60, 4e-3, 4e-3),
        "mrpc": (30, 4e-3, 1e-2),
        "cola": (80, 1e-3, 1e-2),
        "qnli": (25, 4e-3, 1e-2),
        "rte": (160, 1e-2, 1e-2),
        "stsb": (80, 5e-3, 5e-2),
    },
    "large": {
        "sst2": (10, 6e-3, 1e-2),
        "mrpc": (40, 3e-3, 3e-2),
        "cola": (40, 6e-3, 1e-2),
        "qnli": (20, 2e-4, 1e-2),
        "rte": (40, 2e-3, 2e-2),
        "stsb": (20, 2e-3, 2e-2),
    },
}


@pytest.mark.parametrize("path", LANGUAGE, ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_its_method_known(path):
    task = yaml.safe_load(path.read_text())["task"]
    config = read_config(CONFIGS[task], path)
    assert config.out is None


@pytest.mark.parametrize("size", AUTHORS)
@pytest.mark.parametrize("task", AUTHORS["base"])
def test_glue_is_set_as_the_authors_have_it(size, task):
    config = read_config(ClassifyConfig, CONFIG_FOLDER / "glue" / f"{task}_roberta_{size}.yaml")
    training = config.training
    assert (training.epochs, training.head_learning_rate, training.learning_rate) == AUTHORS[size][task]
    assert (training.batch_size, training.warmup, training.weight_decay) == (64, 0.06, 0)
    assert config.model.name == f"FacebookAI/roberta-{size}"
    assert config.adapter.alpha == 1
    assert config.adapter.target_modules == ["query", "key", "value", "attention.output.dense"]
    assert config.data.glue == task

    class Tokenizer:
        pass

    sources = make_task(config, Tokenizer()).sources()
    assert sources == (f"hub:nyu-mll/glue:{task}:train", f"hub:nyu-mll/glue:{task}:validation")


def test_llama_is_set_as_the_authors_have_it():
    sft = read_config(SftConfig, CONFIG_FOLDER / "sft_llama2_7b.yaml")
    assert (sft.adapter.alpha, sft.adapter.dropout) == (16, 0.05)
    training = sft.training
    assert (training.batch_size, training.weight_decay, training.schedule) == (16, 0.01, "cosine")
    assert (training.warmup, training.epochs, training.learning_rate) == (0.1, 1, 4e-4)
    dpo = read_config(DpoConfig, CONFIG_FOLDER / "dpo_llama2_7b.yaml")
    training = dpo.training
    assert (training.beta, training.learning_rate, training.schedule) == (0.1, 5e-5, "cosine")
    assert (training.warmup, training.batch_size, dpo.model.quantize) == (200, 16, "4bit")


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("model: {name: x}\n", [], "key 'data' is missing"),
        ("task: dpo\n", [], "c.yaml, line 1: task='dpo'"),
        ("model:\n  name: x\n  nmae: y\n", [], "c.yaml, line 3: unknown key 'model.nmae'; did you mean 'model.name'"),
        ("a: 1\na: 2\n", [], "line 2: 'a' is given twice, first in line 1"),
        ("model: [\n", [], "not valid YAML"),
        ("- 1\n", [], "a configuration is a list of"),
        ("", ["training.steps"], "override 'training.steps': write it as"),
        ("", ["training.steps=0"], "override 'training.steps=0': training.steps=0: input should be greater"),
        ("", ["training.learning_rate=1e-3x"], "training.learning_rate='1e-3x'"),
    ],
)
def test_mistakes_point_at_their_place(write, text, overrides, words):
    path = write("c.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read_config(SftConfig, path, overrides)
    assert words in str(caught.value)


def test_a_number_without_a_point_is_a_number(write):
    path = write("c.yaml", "model: {name: x}\ndata: {train: a.txt}\ntraining: {steps: 1, learning_rate: 1e-3}\n")
    assert read_config(SftConfig, path, ["training.warmup=5e-2"]).training.learning_rate == 1e-3
    assert "training.beta" in known_keys(DpoConfig)
    assert "training.beta" not in known_keys(SftConfig)
