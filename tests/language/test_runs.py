"""Every task end to end by the command line, on tiny models: what comes out, resuming, the best checkpoint, errors."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaModel,
)

from protfold_peft import language
from protfold_peft.adapters import METHODS, DeadAdapterError
from protfold_peft.configuration import check
from protfold_peft.language.config import CONFIGS
from protfold_peft.language.sft import InstructionTuning

# Large enough that a few steps are seen.
RATES = {"lorta": 0.1, "lotr": 0.01, "tenslora": 0.03, "tera": 0.3, "tensor_train": 0.03, "lora": 0.03}
TRAINING = {"steps": 12, "batch_size": 4, "learning_rate": 0.03, "eval_every": 4, "log_every": 2}
PAIRS = [("say yes: ", "yes", "no, not now"), ("and again: ", "yes, yes", "no"), ("who? ", "a cat", "do not ask")]
PAIRS += [("and then? ", "a dog", "nothing")]
FILES = {
    "classify": "".join(f"{word} {n}\t{label}\n" for n in range(8) for word, label in (("yes", 1), ("no", 0))),
    "sft": "".join(f"{n} + 1 = ||{n + 1}\n" for n in range(9)),
    "dpo": "".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in PAIRS),
    "mlm": "".join(f">chain {n}\n{'MKTAYIAKQR'[n:]}{'LEDVW' * 4}\n" for n in range(6)),
}
NAMES = {"classify": "texts.tsv", "sft": "tables.txt", "dpo": "pairs.jsonl", "mlm": "chains.fasta"}
DATA = {"classify": {"columns": ["text", "label"]}, "sft": {"separator": "||"}, "dpo": {}, "mlm": {}}
MODELS = {"classify": "roberta", "sft": "llama", "dpo": "llama", "mlm": "esm"}
AUTO = {
    "classify": AutoModelForSequenceClassification,
    "sft": AutoModelForCausalLM,
    "dpo": AutoModelForCausalLM,
    "mlm": AutoModelForMaskedLM,
}


@pytest.fixture
def settings(request, write, tmp_path):
    """A function that makes the configuration of a task on its tiny model and file."""

    def make(task: str, *, method: str = "lorta", training: dict | None = None, **groups: dict) -> dict:
        path = write(NAMES[task], FILES[task])
        data = {"train": str(path), "validation": str(path), "max_length": 62, **DATA[task], **groups.get("data", {})}
        return {
            "out": str(tmp_path / "out"),
            "model": {"name": str(request.getfixturevalue(MODELS[task])), "device": "cpu", **groups.get("model", {})},
            "adapter": {"method": method, "rank": 3, **groups.get("adapter", {})},
            "data": data,
            "training": {**TRAINING, "learning_rate": RATES.get(method, 0.03), **(training or {})},
        }

    return make


def configured(task: str, config: dict):
    return check(CONFIGS[task], {"task": task, **config}, {}, "here")


def adapter_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("task", MODELS)
def test_a_run_leaves_an_adapter_that_peft_loads_and_that_scores_as_told(settings, lm, tmp_path, task):
    config = settings(task)
    result = lm(task, config)
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "out"
    assert not (tmp_path / "out.partial").exists()
    expected = {"adapter_config.json", "adapter_model.safetensors", "README.md", "config.yaml", "metrics.csv"}
    assert {path.name for path in out.iterdir()} == {*expected, "results.json"}
    results = json.loads((out / "results.json").read_text())
    assert results["adapted"]["loss" if task != "classify" else "accuracy"] != results["base"].get("loss")
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss"]] == [2, 4, 6, 8, 10, 12]
    assert [int(row["step"]) for row in rows if row["validation"]] == [4, 8, 12]

    options = {"num_labels": 2} if task == "classify" else {}
    base = AUTO[task].from_pretrained(config["model"]["name"], **options)
    model = PeftModel.from_pretrained(base, out)
    saved = adapter_of(out)
    parameters = dict(model.named_parameters())
    trained = sum(p.numel() for name, p in parameters.items() if ".default." in name)
    assert trained == sum(tensor.numel() for tensor in saved.values()) == results["trainable_parameters"]

    # Scored anew from the files alone, the adapter is as good as the run has told, to the last digit.
    again = language.evaluate(out)
    assert dict(again.adapted) == results["adapted"]
    if task != "classify":  # whose base has another random head each time
        assert dict(again.base) == results["base"]


@pytest.mark.parametrize("method", [*METHODS, "peft_lora", "vera"])
def test_every_method_learns_instructions(settings, method):
    config = settings("sft", method=method, training={"steps": 20, "eval_every": 20})
    if method == "vera":
        config["training"]["learning_rate"] = 0.1
    found = language.run(configured("sft", config))
    assert found.adapted["loss"] < found.base["loss"] - 0.1


def test_the_perplexity_is_that_of_the_answers_alone(settings, llama):
    """By hand: the surprise at the letters of every answer and its end mark, one line at a time."""
    found = language.run(configured("sft", settings("sft", training={"steps": 1})))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    surprises = []
    for line in FILES["sft"].splitlines():
        prompt, completion = line.split("||")
        start = tokenizer(prompt + "||").input_ids
        tokens = torch.tensor([start + tokenizer(completion).input_ids + [tokenizer.eos_token_id]])
        with torch.no_grad():
            log_p = model(tokens).logits[0].log_softmax(-1)
        surprises += [-log_p[i - 1, tokens[0, i]].item() for i in range(len(start), tokens.shape[1])]
    assert found.base["loss"] == pytest.approx(np.mean(surprises), abs=1e-5)
    assert found.base["perplexity"] == pytest.approx(math.exp(np.mean(surprises)), rel=1e-5)


def test_a_chat_template_writes_prompts_and_the_loss_counts_answers_alone(settings, write, llama):
    """Both answers of a conversation are learnt; what the loss counts is read off the labels."""
    template = write(
        "chat.jinja",
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}. {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, ("Hi", "Yo", "So", "No"), strict=True)]
    path = write("chat.jsonl", json.dumps({"messages": messages}) + "\n")
    config = settings("sft", training={"steps": 1})
    config["data"] |= {"train": str(path), "validation": None, "separator": None, "chat_template": str(template)}
    tokenizer = AutoTokenizer.from_pretrained(llama)
    task = InstructionTuning(configured("sft", config), tokenizer)
    samples = task.samples(task.read(str(path)), training=True)
    arguments = {"output_dir": config["out"], "use_cpu": True, "bf16": False, "report_to": "none"}
    trainer = task.trainer(AutoModelForCausalLM.from_pretrained(llama), arguments, samples, None)
    found = [
        (tokenizer.decode(row["input_ids"]), tokenizer.decode([token for token in row["labels"] if token != -100]))
        for row in trainer.train_dataset
    ]
    squeezed = [tuple(text.replace(" ", "") for text in pair) for pair in found]
    assert squeezed == [
        ("user:Hi.assistant:Yo.", "Yo."),
        ("user:Hi.assistant:Yo.user:So.assistant:No.", "No."),
    ]


@pytest.mark.parametrize("method", ["lorta", "full"])
def test_the_reference_of_preferences_is_the_base_model(settings, llama, tmp_path, method):
    """The reported margin is beta times the gain over the plain base model, worked out from two separate models."""
    rank = {"rank": 3 if method == "lorta" else None}
    training = {"beta": 0.2, "keep_best": False, "learning_rate": 0.1 if method == "lorta" else 3e-3}
    found = language.run(configured("dpo", settings("dpo", method=method, adapter=rank, training=training)))
    assert found.base["reward_accuracy"] == 0.5
    assert found.base["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert found.base["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found.adapted["reward_accuracy"] == 1

    tokenizer = AutoTokenizer.from_pretrained(llama)
    base = AutoModelForCausalLM.from_pretrained(llama).eval()
    if method == "full":
        adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    else:
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "out").eval()

    def log_probability(model, prompt: str, answer: str) -> float:
        start = tokenizer(prompt).input_ids
        tokens = torch.tensor([start + tokenizer(answer).input_ids + [tokenizer.eos_token_id]])
        with torch.no_grad():
            log_p = model(tokens).logits[0].log_softmax(-1)
        return sum(log_p[i - 1, tokens[0, i]].item() for i in range(len(start), tokens.shape[1]))

    gains = [
        log_probability(adapted, p, c)
        - log_probability(base, p, c)
        - log_probability(adapted, p, r)
        + log_probability(base, p, r)
        for p, c, r in PAIRS
    ]
    assert found.adapted["reward_margin"] == pytest.approx(0.2 * np.mean(gains), abs=1e-3)
    expected = np.mean(np.log1p(np.exp(-0.2 * np.array(gains))))
    assert found.adapted["loss"] == pytest.approx(expected, abs=1e-3)
    again = language.evaluate(tmp_path / "out")
    assert again.adapted == pytest.approx(found.adapted, abs=1e-5)


def test_preferences_go_on_from_an_instructed_adapter_which_is_the_reference(settings, lm, tmp_path):
    assert lm("sft", settings("sft"), "--out", tmp_path / "sft").exit_code == 0
    config = settings("dpo", adapter={"start": str(tmp_path / "sft")})
    found = language.run(configured("dpo", config))
    assert found.adapted["reward_accuracy"] == 1
    assert not any("ref" in name for name in adapter_of(tmp_path / "out"))
    again = language.evaluate(tmp_path / "out")
    assert again.adapted["reward_margin"] == pytest.approx(found.adapted["reward_margin"], abs=1e-5)
    assert again.adapted["reward_margin"] > 0.01


@pytest.mark.parametrize("task", ["classify", "dpo", "mlm"])
def test_a_resumed_run_ends_as_a_whole_one(settings, lm, tmp_path, monkeypatch, task):
    """Interrupted after step 8, of which there is a checkpoint; a later one that is half-written is passed over."""
    config = settings(task, adapter={"dropout": 0.1}, training={"keep_best": False, "save_every": 4})
    assert lm(task, config, "--out", tmp_path / "whole").exit_code == 0

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(language.run.__globals__["ProgressCallback"], "on_step_end", interrupt)
        assert lm(task, config, "--out", tmp_path / "cut").exit_code == 130
    assert not (tmp_path / "cut").exists()
    half = tmp_path / "cut.partial" / "checkpoint-9"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 9')
    unasked = lm(task, config, "--out", tmp_path / "cut")
    assert unasked.exit_code == 2
    assert "checkpoint-8 is of an unfinished run: go on with --resume, or start anew" in unasked.stderr
    other = lm(task, config, "training.batch_size=2", "--out", tmp_path / "cut", "--resume")
    assert other.exit_code == 2
    assert "training.batch_size was 4 and is 2: resume with the settings of the run" in other.stderr
    resumed = lm(task, config, "--out", tmp_path / "cut", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert_same(adapter_of(tmp_path / "cut"), adapter_of(tmp_path / "whole"))
    with (tmp_path / "whole" / "metrics.csv").open() as one, (tmp_path / "cut" / "metrics.csv").open() as other:
        losses = [[row["loss"] for row in csv.DictReader(file)] for file in (one, other)]
    assert losses[0] == losses[1]


def test_the_best_checkpoint_is_kept(settings, write):
    """What is learnt soon does not help with another text."""
    training = {"steps": 16, "eval_every": 2, "learning_rate": 0.6, "schedule": "constant"}
    other = write("other.txt", "QQQ||ZZZZ\nWWW||XXXX\n")
    config = settings("sft", data={"validation": str(other)}, training=training)
    found = language.run(configured("sft", config))
    with (found.out / "metrics.csv").open() as file:
        scores = {int(row["step"]): float(row["validation"]) for row in csv.DictReader(file) if row["validation"]}
    best = min(scores, key=scores.get)
    assert found.best_step == best < 16
    assert found.adapted["loss"] < min(score for step, score in scores.items() if step != best)


def test_training_in_full_writes_a_model_that_others_go_on_from(settings, lm, tmp_path, esm):
    config = settings("mlm", method="full", training={"learning_rate": 1e-3})
    config["adapter"]["rank"] = None
    found = language.run(configured("mlm", config))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert found.trainable_parameters == sum(p.numel() for p in model.parameters())
    assert dict(language.evaluate(tmp_path / "out").adapted) == found.adapted
    onward = settings("mlm", model={"name": str(tmp_path / "out")})
    result = lm("mlm", onward, "--out", tmp_path / "adapter")
    assert result.exit_code == 0, result.stderr


def test_regression_and_its_range(settings, tmp_path, write):
    path = write("pairs.csv", "".join(f"ab{n},ba{n},{n % 5}.5\n" for n in range(12)))
    data = {"train": str(path), "validation": str(path), "glue": "stsb", "columns": None}
    found = language.run(configured("classify", settings("classify", data=data)))
    assert set(found.adapted) == {"pearson", "spearman"}
    assert found.majority is None
    assert language.evaluate(tmp_path / "out").adapted == pytest.approx(found.adapted, abs=1e-5)
    write("pairs.csv", "a,b,1.0\nc,d,5.5\n")
    with pytest.raises(language.run.__globals__["ProtfoldError"], match=r"pairs.csv, line 2: .*from 0 to 5"):
        language.run(configured("classify", settings("classify", data=data)), overwrite=True)


def test_classes_by_name_keep_their_order_in_evaluation(settings, tmp_path, write):
    text = "text,label\n" + "".join(f"{word} {n},{word}\n" for n in range(6) for word in ("plum", "fig", "kiwi"))
    path = write("fruit.csv", text)
    data = {"train": str(path), "validation": str(path), "columns": None}
    found = language.run(configured("classify", settings("classify", data=data, training={"steps": 30})))
    assert found.labels == ("fig", "kiwi", "plum")
    assert found.majority == {"accuracy": pytest.approx(1 / 3), "matthews": 0}
    # A file that lacks a class does not renumber the others.
    part = write("part.csv", "text,label\nkiwi 1,kiwi\nplum 2,plum\n")
    assert found.adapted["accuracy"] == 1
    assert language.evaluate(tmp_path / "out", str(part)).adapted["accuracy"] == 1


def test_bf16_and_checkpointing_train_factors_in_fp32(settings):
    config = settings("sft", model={"dtype": "bf16", "gradient_checkpointing": True})
    found = language.run(configured("sft", config))
    assert found.adapted["loss"] < found.base["loss"]
    assert {tensor.dtype for tensor in adapter_of(found.out).values()} == {torch.float32}


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base(settings, llama, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    wide = tmp_path / "wide"
    shutil.copytree(llama, wide)
    # The kernels for CPUs take blocks of 64.
    config = LlamaConfig.from_pretrained(llama, hidden_size=128, intermediate_size=128, head_dim=32)
    LlamaForCausalLM(config).save_pretrained(wide)
    found = language.run(configured("dpo", settings("dpo", model={"name": str(wide), "quantize": bits})))
    assert found.adapted["reward_accuracy"] == 1
    assert {tensor.dtype for tensor in adapter_of(found.out).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        (
            "classify",
            {"data": {"columns": ["words", "label"]}},
            "texts.tsv, line 1: no column 'text'; there are: words",
        ),
        ("classify", {"file": ""}, "texts.tsv: the file is empty"),
        ("classify", {"file": "a\t0\nb\t2\n", "data": {"labels": 2}}, "texts.tsv, line 2: label '2' is none of 0, 1"),
        ("classify", {"file": "a\t0\n\t1\n"}, "texts.tsv, line 2: 'text' is empty"),
        ("classify", {"file": "a\t0\nb\t0\n"}, "all records have the label '0'"),
        (
            "classify",
            {"file": "a\t0\n" + "b" * 99 + "\t1\n"},
            "texts.tsv, line 2: 99 tokens, more than data.max_length=62",
        ),
        ("classify", {"data": {"max_length": 100}}, "data.max_length=100: "),
        ("classify", {"data": {"glue": "cola", "label": "x"}}, "data.label: data.glue=cola sets it"),
        ("sft", {"data": {"template": "chat"}}, "has no chat template; name a file"),
        ("sft", {"file": "1||2\n3\n"}, "tables.txt, line 2: no '||' with a text behind it"),
        ("dpo", {"file": FILES["dpo"] + "{oops}\n"}, "pairs.jsonl, line 5: not valid JSON"),
        ("dpo", {"training": {"batch_size": 3, "accumulate": 2}}, "training.batch_size=3 cannot be divided"),
        ("dpo", {"training": {"steps": 3, "epochs": 1}}, "training: give either steps or epochs"),
        ("dpo", {"training": {"betta": 1}}, "unknown key 'training.betta'; did you mean 'training.beta'?"),
        ("mlm", {"file": ">a\nMKV\n>b c\nMK1\n"}, "chains.fasta: record 2 ('b c', line 3): digit '1' at position 3"),
        ("mlm", {"model": {"name": "./gone"}}, "model folder ./gone does not exist"),
        ("mlm", {"training": {"core_learning_rate": 1.0}}, "core_lr=1.0 is given, but the model has no such"),
        ("mlm", {"adapter": {"target_modules": ["quary"]}}, "did you mean 'query'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(settings, lm, write, tmp_path, task, change, words):
    training = change.get("training")
    config = settings(task, training=training, **{key: value for key, value in change.items() if key != "training"})
    if "file" in change:
        write(NAMES[task], change["file"])
    result = lm(task, config)
    assert result.exit_code == 2
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert not (tmp_path / "out").exists()


def test_too_long_samples_are_truncated_or_skipped(settings, write, tmp_path):
    text = "aa\t0\n" + "b" * 99 + "\t1\n" + "bb\t1\nab\t0\n"
    for way, used in (("truncate", 4), ("skip", 3)):
        config = settings("classify", data={"too_long": way}, training={"steps": 1})
        write(NAMES["classify"], text)
        found = language.run(configured("classify", config), overwrite=True)
        assert found.train_records == used
        assert len(found.skipped) == 2 * (way == "skip")  # in training and in validation
    assert "line 2: 99 tokens" in found.skipped[0]


def test_a_loss_that_is_not_finite_ends_the_run(settings, lm, tmp_path):
    config = settings("sft", training={"steps": 40, "learning_rate": 1e4, "schedule": "constant", "keep_best": False})
    result = lm("sft", config)
    assert result.exit_code == 2
    assert "the loss is not finite by step" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_the_loss_does_not_reach_is_named(settings, monkeypatch):
    """The encoder's output is cut off the head, as stock ESMFold does with its language model."""
    for method in ("lorta", "peft_lora"):
        with monkeypatch.context() as patch:
            forward = RobertaModel.forward

            def detached(self, *args, forward=forward, **kwargs):
                output = forward(self, *args, **kwargs)
                output.last_hidden_state = output.last_hidden_state.detach()
                return output

            patch.setattr(RobertaModel, "forward", detached)
            with pytest.raises(DeadAdapterError, match=r"no gradient reaches 8.*adapted modules \(.*layer\.0"):
                language.run(configured("classify", settings("classify", method=method)))


def test_a_prompt_that_fills_the_length_is_told(settings, write):
    config = settings("sft", data={"too_long": "truncate", "max_length": 20}, training={"steps": 1})
    write(NAMES["sft"], "1 + 1 = ||2\n" + "1 + " * 9 + "= ||9\n" + "2 = ||" + "2" * 40 + "\n")
    found = language.run(configured("sft", config))
    assert found.train_records == 2
    assert found.skipped[0].endswith("tables.txt, line 2: the prompt alone fills data.max_length=20")


def test_results_are_not_replaced_unasked(settings, lm, tmp_path):
    config = settings("sft", training={"steps": 1})
    assert lm("sft", config).exit_code == 0
    refused = lm("sft", config)
    assert refused.exit_code == 2
    assert "is not empty: name another folder" in refused.stderr
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert lm("sft", config, "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    resumed = lm("sft", config, "--overwrite", "--resume")
    assert resumed.exit_code == 2
    assert "no whole checkpoint to resume from" in resumed.stderr


@pytest.mark.slow
def test_two_processes_train_as_one(settings, lm, tmp_path):
    task = "sft"
    # Eight samples: a last batch that is not full would be divided in another way.
    training = {"steps": 6, "max_grad_norm": 0, "keep_best": False}
    config = settings(task, method="lotr", data={"limit": 8}, training=training)
    assert lm(task, config, "--out", tmp_path / "one").exit_code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    command += ["-m", "protfold_peft.cli.main", "lm", task, str(tmp_path / f"{task}.yaml"), "--out"]
    done = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("adapter in") == 1
    one, two = adapter_of(tmp_path / "one"), adapter_of(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
