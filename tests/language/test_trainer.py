"""The Trainer of transformers with every method: a classifier, a masked and a causal language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from adapter_methods import METHODS, TWO
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    EsmConfig,
    EsmForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# Larger weights than usual, so that attention in a model that was never trained depends on its input.
SMALL |= {"initializer_range": 0.3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RATES = {"lorta": 0.05, "lotr": 0.01, "tenslora": 0.03, "tera": 0.1, "tensor_train": 0.03, "lora": 0.03}
MASK, FIRST = 3, 4


def make_roberta() -> nn.Module:
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=40, max_position_embeddings=32, num_labels=3, **SMALL, **NO_DROPOUT)
    return RobertaForSequenceClassification(config)


def make_esm() -> nn.Module:
    torch.manual_seed(0)
    config = EsmConfig(vocab_size=33, position_embedding_type="rotary", pad_token_id=1, mask_token_id=MASK, **SMALL)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.token_dropout = False
    return EsmForMaskedLM(config)


def make_gpt2() -> nn.Module:
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=33, n_embd=32, n_layer=2, n_head=4, n_positions=16, initializer_range=0.3, **dropout)
    return GPT2LMHeadModel(config)


def labelled(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The class of a sequence is the third of the alphabet that its first token is of."""
    return {"input_ids": tokens, "labels": (tokens[0] - FIRST) // 8}


def masked(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every third token is hidden; it is the same as its left neighbour."""
    tokens = tokens.clone()
    tokens[1::3] = tokens[0::3][: len(tokens[1::3])]
    labels = torch.full_like(tokens, -100)
    labels[1::3] = tokens[1::3]
    tokens[1::3] = MASK
    return {"input_ids": tokens, "labels": labels}


def causal(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """One token over and over."""
    tokens = tokens[0].expand_as(tokens)
    return {"input_ids": tokens, "labels": tokens}


@dataclass(frozen=True)
class Task:
    make: Any
    sample: Any
    targets: list[str]
    options: dict[str, Any]


TASKS = {
    "roberta": Task(make_roberta, labelled, ["query", "key", "value"], {"modules_to_save": ["classifier"]}),
    "esm": Task(make_esm, masked, ["query", "key", "value", "attention.output.dense"], {}),
    "gpt2": Task(make_gpt2, causal, ["c_attn", "attn.c_proj"], {}),
}


# In the default run every method on one of them, and two methods on the others.
EVERY_PAIR = [
    pytest.param(name, method, marks=() if name == "esm" or method in ("lorta", "tera") else pytest.mark.slow)
    for name in TASKS
    for method in METHODS
]


def samples(task: Task, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [task.sample(row) for row in torch.randint(FIRST, 28, (count, 12), generator=generator)]


def make_trainer(name: str, method: str, folder, seed: int, **options: Any) -> Trainer:
    task = TASKS[name]
    config, own = METHODS[method]
    model = task.make()
    torch.manual_seed(seed)
    peft_config = config(**({"r": 3, "target_modules": task.targets} | own | task.options | options.pop("config", {})))
    arguments = {
        "output_dir": str(folder),
        "learning_rate": RATES[method],
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "seed": 5,
    }
    return Trainer(
        model=get_peft_model(model, peft_config),
        args=TrainingArguments(**(arguments | options)),
        train_dataset=samples(task, 16, 1),
        eval_dataset=samples(task, 16, 2),
    )


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def losses(trainer: Trainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def logits(model: nn.Module, name: str) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.stack([s["input_ids"] for s in samples(TASKS[name], 4, 3)])).logits


@pytest.mark.parametrize(("name", "method"), EVERY_PAIR)
def test_trains_and_what_is_saved_is_what_was_trained(tmp_path, name, method):
    trainer = make_trainer(name, method, tmp_path / "run", 1, max_steps=30)
    before = trained(trainer.model)
    trainer.train()
    steps = losses(trainer)
    assert sum(steps[-2:]) < 0.95 * sum(steps[:2])
    assert all(not torch.equal(p, before[key]) for key, p in trained(trainer.model).items())
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(TASKS[name].make(), tmp_path / "saved", is_trainable=True)
    assert_same(trained(loaded), trained(trainer.model))
    assert torch.equal(logits(loaded, name), logits(trainer.model, name))
    stock = TASKS[name].make()
    for key, p in trainer.model.base_model.model.named_parameters():
        if "modules_to_save" not in key:
            plain = key.replace(".base_layer.", ".").replace(".original_module.", ".")
            assert torch.equal(p, stock.get_parameter(plain)), key


@pytest.mark.parametrize("method", TWO)
@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, name, method):
    def trainer(seed: int, **config: Any) -> Trainer:
        options = {"save_strategy": "steps", "save_steps": 4, "config": {"dropout": 0.1} | config}
        return make_trainer(name, method, tmp_path / "run", seed, max_steps=7, **options)

    whole = trainer(1)
    whole.train()
    # Another adapter to begin with: what it was must not matter.
    resumed = trainer(2, init_weights=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert_same(trained(resumed.model), trained(whole.model))
    assert losses(resumed)[4:] == losses(whole)[4:]


@pytest.mark.parametrize("method", TWO)
@pytest.mark.parametrize("name", TASKS)
def test_the_best_model_is_loaded_at_the_end(tmp_path, name, method):
    """The rate is so high at the end that the last model is not the best one."""
    trainer = make_trainer(
        name,
        method,
        tmp_path / "run",
        1,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        lr_scheduler_type="constant",
    )
    ruin = trainer.create_optimizer()
    at_step = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if trainer.state.global_step == 8:
            ruin.param_groups[0]["lr"] = 30.0
        return at_step(*args, **kwargs)

    trainer.training_step = training_step
    trainer.train()
    scores = losses(trainer, "eval_loss")
    best = 2 * (1 + scores.index(min(scores)))
    assert best < 12
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == min(scores)
    loaded = PeftModel.from_pretrained(TASKS[name].make(), trainer.state.best_model_checkpoint, is_trainable=True)
    assert_same(trained(loaded), trained(trainer.model))
