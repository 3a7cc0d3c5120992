"""Instruction tuning and preference optimisation by TRL, for every method: on a tiny random Llama, and on the real
model of the test data."""

from __future__ import annotations

import json
import math

import pytest
import torch
from adapter_methods import METHODS, TWO, make_config
from peft import PeftModel, get_peft_model
from stories import RECIPES
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("trl", reason="trl is not installed: pip install '.[llm]'")
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

# Large enough that a few steps are seen in the loss.
RATES = {"lorta": 0.1, "lotr": 0.01, "tenslora": 0.03, "tera": 0.3, "tensor_train": 0.03, "lora": 0.03}
SENTENCES = ["the cat sat on the mat.", "a dog ran in the park.", "who has seen the sun?", "we like red apples."]
PAIRS = [
    {"prompt": "say yes: ", "chosen": "yes", "rejected": "no, not now"},
    {"prompt": "say it again: ", "chosen": "yes, yes", "rejected": "no"},
    {"prompt": "what is it? ", "chosen": "a cat", "rejected": "do not ask"},
    {"prompt": "and then? ", "chosen": "a dog", "rejected": "nothing"},
]


def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def new_config(method, **options):
    config, own = METHODS[method]
    return config(**({"r": 3} | own | options))


def settings(kind, folder, method, **options):
    """A step of four samples, everything logged, no warm-up."""
    common = {
        "output_dir": str(folder),
        "learning_rate": RATES[method],
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 48,
        "seed": 3,
    }
    return kind(**(common | options))


def sft(model, tokenizer, folder, method, **options):
    config = options.pop("peft_config", None)
    data = options.pop("data", Dataset.from_dict({"text": SENTENCES}))
    return SFTTrainer(
        model=model,
        args=settings(SFTConfig, folder, method, **options),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=config,
    )


def dpo(model, tokenizer, folder, method, **options):
    config = options.pop("peft_config", None)
    data = options.pop("data", Dataset.from_list(PAIRS))
    return DPOTrainer(
        model=model,
        args=settings(DPOConfig, folder, method, **options),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=config,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def factors(model, adapter="default"):
    return {
        name.replace(f".{adapter}.", "."): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name
    }


def assert_same_factors(one, other):
    assert one
    assert set(one) == set(other)
    for name, factor in one.items():
        assert torch.equal(factor, other[name]), name


def assert_base_unchanged(model, folder):
    stock = fresh(folder)
    for name, parameter in model.base_model.model.named_parameters():
        assert torch.equal(parameter, stock.get_parameter(name.replace(".base_layer.", "."))), name


def log_probabilities(model, inputs):
    """Of each completion, `(b)`: by hand, from the logits."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    log_p = logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None]).squeeze(2)
    return (log_p * inputs["completion_mask"][:, 1:]).sum(1)


def preference_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("method", METHODS)
def test_sft_learns_and_what_it_saves_is_what_it_learnt(tiny_llama_folder, letters, tmp_path, method):
    trainer = sft(
        fresh(tiny_llama_folder),
        letters,
        tmp_path / "run",
        method,
        peft_config=new_config(method),
        per_device_train_batch_size=4,
        max_steps=15,
    )
    trainer.train()
    steps = losses(trainer)
    assert steps[-1] < steps[0] - 0.05
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(fresh(tiny_llama_folder), tmp_path / "saved")
    assert type(loaded.peft_config["default"]) is METHODS[method][0]
    assert_same_factors(factors(loaded), factors(trainer.model))
    tokens = torch.tensor([letters(SENTENCES[0]).input_ids])
    trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, trainer.model(tokens).logits)
        with loaded.disable_adapter():
            assert torch.equal(loaded(tokens).logits, fresh(tiny_llama_folder)(tokens).logits)
    assert_base_unchanged(trainer.model, tiny_llama_folder)


@pytest.mark.parametrize("method", TWO)
def test_sft_with_checkpointing_is_the_same_training(tiny_llama_folder, letters, tmp_path, method):
    trained = {}
    for way in ("none", "non-reentrant", "trl's default"):
        options = {"gradient_checkpointing": way != "none"}
        if way == "non-reentrant":
            options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        torch.manual_seed(1)
        trainer = sft(
            fresh(tiny_llama_folder), letters, tmp_path / way, method, peft_config=new_config(method), **options
        )
        trainer.train()
        trained[way] = factors(trainer.model)
    start = factors(trainer.model)
    for name in start:
        assert torch.equal(trained["none"][name], trained["non-reentrant"][name]), name
        assert torch.equal(trained["none"][name], trained["trl's default"][name]), name


@pytest.mark.parametrize("method", TWO)
@pytest.mark.parametrize("kind", [sft, dpo])
def test_trls_own_precision_is_bfloat16_and_factors_stay_float32(tiny_llama_folder, letters, tmp_path, method, kind):
    options = {"bf16": None, "gradient_checkpointing": True, "per_device_train_batch_size": 4, "max_steps": 12}
    trainer = kind(fresh(tiny_llama_folder), letters, tmp_path, method, peft_config=new_config(method), **options)
    assert trainer.args.bf16
    trainer.train()
    steps = losses(trainer)
    assert steps[-1] < steps[0] - 0.03
    assert {factor.dtype for factor in factors(trainer.model).values()} == {torch.float32}


@pytest.mark.parametrize("method", TWO)
@pytest.mark.parametrize("kind", [sft, dpo])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_llama_folder, letters, tmp_path, method, kind):
    def trainer(seed, **changes):
        torch.manual_seed(seed)
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
        options["peft_config"] = new_config(method, dropout=0.1, **changes)
        return kind(fresh(tiny_llama_folder), letters, tmp_path / "run", method, **options)

    whole = trainer(1)
    whole.train()
    # Another adapter to begin with: what it was must not matter.
    resumed = trainer(2, init_weights=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_factors(factors(resumed.model), factors(whole.model))
    assert losses(resumed)[2:] == losses(whole)[2:]


@pytest.mark.parametrize("method", TWO)
def test_the_reference_of_a_new_adapter_is_the_base_model(tiny_llama_folder, letters, tmp_path, method):
    torch.manual_seed(1)
    model, config = fresh(tiny_llama_folder), new_config(method)
    trainer = dpo(model, letters, tmp_path, method, peft_config=config, per_device_train_batch_size=4, max_steps=12)
    trainer.train()
    steps = losses(trainer)
    assert math.isclose(steps[0], math.log(2), abs_tol=1e-6)
    assert steps[-1] < steps[0] - 0.05
    assert set(trainer.model.peft_config) == {"default"}
    inputs = preference_batch(trainer)
    reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))
    expected = log_probabilities(fresh(tiny_llama_folder), inputs)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-4)
    assert (log_probabilities(trainer.model, inputs) - expected).abs().max() > 1
    assert_base_unchanged(trainer.model, tiny_llama_folder)


@pytest.mark.parametrize("method", TWO)
def test_the_reference_of_a_trained_adapter_is_a_copy_of_it(tiny_llama_folder, letters, tmp_path, method):
    torch.manual_seed(1)
    model = get_peft_model(fresh(tiny_llama_folder), make_config(method))
    model.save_pretrained(tmp_path / "first")
    first = factors(model)
    model = PeftModel.from_pretrained(fresh(tiny_llama_folder), tmp_path / "first", is_trainable=True)
    trainer = dpo(model, letters, tmp_path / "run", method, per_device_train_batch_size=4, max_steps=12)
    assert set(trainer.model.peft_config) == {"default", "ref"}
    assert_same_factors(factors(trainer.model, "ref"), first)
    inputs = preference_batch(trainer)
    again = PeftModel.from_pretrained(fresh(tiny_llama_folder), tmp_path / "first")
    expected = log_probabilities(again, inputs)
    assert (log_probabilities(fresh(tiny_llama_folder), inputs) - expected).abs().max() > 0.1
    for _ in range(2):  # before training, and after
        reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))
        torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-4)
        if not trainer.state.global_step:
            trainer.train()
    steps = losses(trainer)
    assert math.isclose(steps[0], math.log(2), abs_tol=1e-6)
    assert steps[-1] < steps[0] - 0.05
    assert_same_factors(factors(trainer.model, "ref"), first)
    assert all(not torch.equal(factor, first[name]) for name, factor in factors(trainer.model).items())
    assert not any(p.requires_grad for name, p in trainer.model.named_parameters() if ".ref." in name)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(fresh(tiny_llama_folder), tmp_path / "saved")
    assert_same_factors(factors(loaded), factors(trainer.model))


@pytest.mark.parametrize("method", TWO)
def test_a_resumed_run_keeps_its_reference(tiny_llama_folder, letters, tmp_path, method):
    torch.manual_seed(1)
    get_peft_model(fresh(tiny_llama_folder), make_config(method)).save_pretrained(tmp_path / "first")

    def trainer():
        model = PeftModel.from_pretrained(fresh(tiny_llama_folder), tmp_path / "first", is_trainable=True)
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
        return dpo(model, letters, tmp_path / "run", method, **options)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for adapter in ("default", "ref"):
        assert_same_factors(factors(resumed.model, adapter), factors(whole.model, adapter))
    assert losses(resumed)[2:] == losses(whole)[2:]


@pytest.mark.parametrize("method", TWO)
def test_reference_log_probabilities_made_beforehand(tiny_llama_folder, letters, tmp_path, method):
    torch.manual_seed(1)
    options = {"peft_config": new_config(method), "precompute_ref_log_probs": True, "per_device_train_batch_size": 4}
    trainer = dpo(fresh(tiny_llama_folder), letters, tmp_path, method, **options)
    trainer.train()
    inputs = preference_batch(trainer)
    stored = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
    torch.testing.assert_close(stored, log_probabilities(fresh(tiny_llama_folder), inputs), rtol=1e-5, atol=1e-4)


def instructions(data, count):
    """Prompts and answers, shortened: this model's tokens are letters."""
    rows = json.loads((data / "instruct" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    chosen = [row for row in rows if len(row["instruction"]) < 60 and not row["input"]][:count]
    return Dataset.from_list(
        [{"prompt": row["instruction"] + "\n", "completion": row["output"][:100]} for row in chosen]
    )


def preferences(data, count):
    rows = json.loads((data / "instruct" / "dpo_en_demo.json").read_text(encoding="utf-8"))
    chosen = [row for row in rows if len(row["conversations"]) == 1 and len(row["conversations"][0]["value"]) < 80]
    return Dataset.from_list(
        [
            {
                "prompt": row["conversations"][0]["value"] + "\n",
                "chosen": row["chosen"]["value"][:60],
                "rejected": row["rejected"]["value"][:60],
            }
            for row in chosen[:count]
        ]
    )


@pytest.mark.parametrize("method", TWO)
def test_a_real_model_learns_instructions_then_preferences(language_data, tmp_path, method):
    folder = language_data / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recipe = dict(RECIPES[method])
    rate = recipe.pop("learning_rate")
    torch.manual_seed(1)
    first = sft(
        fresh(folder),
        tokenizer,
        tmp_path / "sft",
        method,
        peft_config=new_config(method, **recipe),
        data=instructions(language_data, 8),
        per_device_train_batch_size=8,
        learning_rate=rate,
        warmup_steps=2,
        max_steps=12,
        max_length=128,
    )
    first.train()
    steps = losses(first)
    assert steps[-1] < 0.95 * steps[0]
    first.save_model(str(tmp_path / "instructed"))
    instructed = PeftModel.from_pretrained(fresh(folder), tmp_path / "instructed", is_trainable=True)
    second = dpo(
        instructed,
        tokenizer,
        tmp_path / "dpo",
        method,
        data=preferences(language_data, 4),
        per_device_train_batch_size=4,
        learning_rate=rate / 3,
        max_steps=8,
        max_length=128,
    )
    inputs = preference_batch(second)
    second.train()
    assert losses(second)[-1] < math.log(2) - 0.05
    reference = torch.cat(second.compute_ref_log_probs(second.model, inputs))
    expected = log_probabilities(PeftModel.from_pretrained(fresh(folder), tmp_path / "instructed"), inputs)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-3)
