"""The language-model tasks on small real models, by every adapter method: what docs/language.md reports.

    PROTFOLD_TEST_DATA=../shared/data python benchmarks/language.py sft --csv sft.csv
    PROTFOLD_TEST_DATA=../shared/data python benchmarks/language.py dpo glue esm

`sft`   a 260,032-parameter story teller learns to describe restaurants; every method at three parameter budgets.
`dpo`   the same model learns to prefer the one of two of its own stories that has more sentences.
`glue`  a small text encoder is pre-trained by our `mlm` on the text of SST-2 and CoLA, then adapted to each.
`esm`   a small protein encoder is pre-trained by our `mlm` on chains, then adapted to families of proteins.

Everything runs through `protfold_peft.language.run` and `evaluate`, as the command line does. Learning rates of `sft`
are chosen for every method and budget with `--tune`; otherwise all were set once and not tuned.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

METHODS = ("full", "peft_lora", "lorta", "lotr", "tenslora", "tera", "tensor_train")
# Ranks at which the methods have about as many parameters as LoRA of rank 1, 2 and 4: 2,240, 4,480 and 8,960.
BUDGETS = (2_240, 4_480, 8_960)
RANKS = {"peft_lora": (1, 2, 4), "lorta": (24, 48, 96), "lotr": (6, 10, 16), "tensor_train": (7, 11, 18)}
RATES = {
    "peft_lora": (1e-2, 1e-2, 3e-2),
    "lorta": (3e-2, 3e-2, 3e-2),
    "lotr": (1e-2, 1e-2, 1e-2),
    "tensor_train": (3e-2, 1e-2, 1e-2),
    "tenslora": (3e-2, 3e-2, 3e-2),
}


def sft(data: Path, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Perplexity of the answers on the test file, by method, budget and seed.

    With `--tune` the rate is the best of three, half a decade apart, for the first seed, on lines whose tables training
    then never sees; without, it is the middle one, and no line is held out.
    """
    texts = {name: data / f"language/instruct/e2e_{name}.txt" for name in ("valid", "test")}
    lines, test = (path.read_text(encoding="utf-8").splitlines() for path in texts.values())
    kept_out = set(sorted({line.partition("||")[0] for line in lines})[::5] if options.tune else [])
    parts = {
        "train": ([line for line in lines if line.partition("||")[0] not in kept_out], options.train_lines),
        "test": (test, options.test_lines),
    }
    if options.tune:
        held_out = [line for line in lines if line.partition("||")[0] in kept_out]
        parts["tune"] = (held_out, options.test_lines // 2)
    for part, (found, count) in parts.items():
        chosen = [found[i * len(found) // count] for i in range(count)]
        (scratch / f"{part}.txt").write_text("\n".join(chosen), encoding="utf-8")

    def trained(adapter: dict[str, Any], rate: float, seed: int) -> Any:
        return run(
            "sft",
            scratch,
            out=f"rate_{rate:g}",
            model={"name": str(data / "language/stories260K")},
            adapter=adapter,
            data={
                "train": str(scratch / "train.txt"),
                "validation": str(scratch / "tune.txt") if options.tune else None,
                "separator": "||",
                "max_length": 400,
            },
            training={"steps": options.steps, "batch_size": 4, "learning_rate": rate, "seed": seed, "warmup": 0.05}
            | {"keep_best": False},
        )

    for method, place in [*((method, place) for place in range(len(BUDGETS)) for method in RATES), ("tera", 0)]:
        if method not in options.methods:
            continue
        adapter = sft_adapter(method, place)
        guess = RATES.get(method, (3e-1,))[place]
        rates = [float(f"{guess * 10 ** (k / 2):.0e}") for k in ((-1, 0, 1) if options.tune else (0,))]
        tried = {rate: trained(adapter, rate, options.seeds[0]) for rate in rates}
        rate = min(tried, key=lambda each: tried[each].adapted["perplexity"]) if options.tune else rates[0]
        for seed in options.seeds:
            found = tried[rate] if seed == options.seeds[0] else trained(adapter, rate, seed)
            scores = evaluate(scratch / f"rate_{rate:g}", str(scratch / "test.txt"))
            budget = BUDGETS[place] if method != "tera" else "largest"
            yield {"task": "sft", "method": method, "budget": budget, "rank": adapter["rank"], "seed": seed} | {
                "rate": rate,
                "parameters": found.trainable_parameters,
                "before": scores.base["perplexity"],
                "after": scores.adapted["perplexity"],
                "seconds": found.seconds,
            }


def sft_adapter(method: str, place: int) -> dict[str, Any]:
    """The adapter settings of a method at one of the budgets."""
    adapter: dict[str, Any] = {"method": method, "rank": RANKS.get(method, (8, 8, 8))[place]}
    if method == "peft_lora":
        return adapter
    adapter["init"] = "rank_stable"
    if method == "tenslora":
        return adapter | {"options": {"budget": BUDGETS[place]}}
    # No mode of TeRA is longer than 8 here: rank 8 is its largest.
    return adapter if method == "tera" else adapter | {"alpha": 8.0}


def dpo(data: Path, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Held-out reward accuracy after learning to prefer more sentences, and whether the base has stayed as it was."""
    import torch
    from safetensors.torch import load_file

    folder = data / "language/stories260K"
    pairs = story_pairs(folder, options.pairs)
    cut = len(pairs) * 3 // 4
    for name, part in (("train", pairs[:cut]), ("test", pairs[cut:])):
        (scratch / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in part))
    rates = {"peft_lora": (2, 3e-3), "lorta": (32, 1e-2), "tensor_train": (8, 1e-2)}
    for method, (rank, rate) in wanted(rates, options):
        ours = method != "peft_lora"
        adapter = {"method": method, "rank": rank, "init": "rank_stable" if ours else None}
        before = load_file(folder / "model.safetensors")
        found = run(
            "dpo",
            scratch,
            model={"name": str(folder)},
            adapter=adapter | {"alpha": 8.0 if ours else None},
            data={"train": str(scratch / "train.jsonl"), "validation": str(scratch / "test.jsonl")},
            training={"steps": options.steps, "batch_size": 8, "learning_rate": rate, "keep_best": False},
        )
        after = load_file(folder / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)
        yield {"task": "dpo", "method": method, "rank": rank, "parameters": found.trainable_parameters} | {
            "before": found.base["likelihood_accuracy"],
            "after": found.adapted["likelihood_accuracy"],
            "reward_accuracy": found.adapted["reward_accuracy"],
            "reward_margin": found.adapted["reward_margin"],
            "seconds": found.seconds,
        }


def story_pairs(folder: Path, count: int) -> list[dict[str, str]]:
    """Two stories of the model's own to each beginning, of which the one with more sentences is chosen."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    names, things = ("Lily", "Tom", "Ben", "Mia", "Sam", "Sue"), ("dog", "ball", "tree", "cat", "car", "bird", "boat")
    prompts = [f"Once upon a time, {name} had a {thing}." for name in names for thing in things]
    pairs: list[dict[str, str]] = []
    while len(pairs) < count:
        tokens = tokenizer(prompts * 4, return_tensors="pt", padding=True)
        with torch.inference_mode():
            made = model.generate(**tokens, do_sample=True, max_new_tokens=60, pad_token_id=tokenizer.eos_token_id)
        texts = tokenizer.batch_decode(made[:, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        half = len(texts) // 2
        for prompt, *both in zip(prompts * 2, texts[:half], texts[half:]):
            fewer, more = sorted(both, key=lambda text: text.count("."))
            if more.count(".") >= fewer.count(".") + 2:
                pairs.append({"prompt": prompt, "chosen": more, "rejected": fewer})
    return pairs[:count]


def glue(data: Path, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Accuracy on SST-2 and Matthews' correlation on CoLA, of adapters, of full fine-tuning, and of the majority."""
    folder = data / "language/glue"
    texts = [line.split("\t")[0] for line in (folder / "sst2_train.tsv").read_text().splitlines()]
    texts += [line.split("\t")[3] for line in (folder / "cola_train.tsv").read_text().splitlines()]
    (scratch / "text.txt").write_text("\n".join(texts))
    encoder = text_encoder(scratch / "untrained", texts)
    found = run(
        "mlm",
        scratch,
        out="encoder",
        model={"name": str(encoder)},
        adapter={"method": "full", "rank": None},
        data={"train": str(scratch / "text.txt"), "validation_fraction": 0.02, "max_length": 64, "too_long": "skip"},
        training={"steps": options.pretraining, "batch_size": 32, "learning_rate": 1e-3, "eval_every": 10**6},
    )
    yield {"task": "mlm text", "method": "full", "parameters": found.trainable_parameters, "steps": found.steps} | {
        "before": found.base["perplexity"],
        "after": found.adapted["perplexity"],
        "seconds": found.seconds,
    }
    rates = {"full": (None, 3e-4), "peft_lora": (2, 3e-3), "lorta": (8, 1e-2), "lotr": (8, 1e-2)}
    rates |= {"tenslora": (4, 1e-2), "tera": (8, 1e-1), "tensor_train": (8, 1e-2)}
    for task, validation, metric in (("sst2", "sst2_test.tsv", "accuracy"), ("cola", "cola_dev.tsv", "matthews")):
        for method, (rank, rate) in wanted(rates, options):
            adapter: dict[str, Any] = {"method": method, "rank": rank}
            adapter |= {} if method in ("full", "peft_lora") else {"init": "rank_stable"}
            adapter |= {"alpha": 8.0} if method in ("lorta", "lotr", "tensor_train") else {}
            found = run(
                "classify",
                scratch,
                model={"name": str(scratch / "encoder")},
                adapter=adapter,
                data={
                    "glue": task,
                    "train": str(folder / f"{task}_train.tsv"),
                    "validation": str(folder / validation),
                    "too_long": "truncate",
                    "max_length": 64,
                },
                training={"steps": options.steps, "batch_size": 32, "learning_rate": rate, "keep_best": False}
                | ({} if method == "full" else {"head_learning_rate": 1e-3}),
            )
            yield {"task": task, "method": method, "rank": rank or "", "head": found.head_parameters} | {
                "parameters": found.trainable_parameters - found.head_parameters,
                "before": (found.majority or {})[metric],
                "after": found.adapted[metric],
                "seconds": found.seconds,
            }


def text_encoder(folder: Path, texts: list[str]) -> Path:
    """An untrained RoBERTa of 4 layers of width 128, with a byte-pair tokenizer of 4,000 words."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=4_000, special_tokens=special, show_progress=False)
    from tokenizers.processors import RobertaProcessing

    tokenizer._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special))
    names |= {"cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    RobertaConfig(
        vocab_size=4_000,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=["RobertaForMaskedLM"],
    ).save_pretrained(folder)
    return folder


def esm(data: Path, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Perplexity of hidden residues in families that a small ESM-2 was not pre-trained on, before and after."""
    from transformers import EsmConfig, EsmTokenizer
    from transformers.models.esm.configuration_esm import get_default_vocab_list

    with (data / "structures/manifest.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for name, role, part in (("pretrain", "pretrain", ""), ("train", "family", "train"), ("test", "family", "test")):
        chains = [row for row in rows if row["role"] == role and part in ("", row["part"])]
        text = "".join(f">{row['name']}\n{row['sequence'].replace('-', '')}\n" for row in chains if row["sequence"])
        (scratch / f"{name}.fasta").write_text(text)
    folder = scratch / "untrained_esm"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(get_default_vocab_list()))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        architectures=["EsmForMaskedLM"],
    ).save_pretrained(folder)
    common = {"max_length": 300, "too_long": "truncate", "validation": str(scratch / "test.fasta")}
    found = run(
        "mlm",
        scratch,
        out="esm",
        model={"name": str(folder)},
        adapter={"method": "full", "rank": None},
        data={"train": str(scratch / "pretrain.fasta"), **common},
        training={"steps": options.pretraining, "batch_size": 8, "learning_rate": 1e-3, "keep_best": False},
    )
    yield {"task": "mlm esm", "method": "full", "parameters": found.trainable_parameters, "steps": found.steps} | {
        "before": found.base["perplexity"],
        "after": found.adapted["perplexity"],
        "seconds": found.seconds,
    }
    rates = {"peft_lora": (2, 1e-2), "lorta": (16, 3e-2), "lotr": (8, 1e-2), "tenslora": (4, 3e-2)}
    rates |= {"tera": (8, 3e-1), "tensor_train": (8, 3e-2)}
    for method, (rank, rate) in wanted(rates, options):
        adapter: dict[str, Any] = {"method": method, "rank": rank}
        adapter |= {} if method == "peft_lora" else {"init": "rank_stable"}
        adapter |= {"alpha": 8.0} if method in ("lorta", "lotr", "tensor_train") else {}
        found = run(
            "mlm",
            scratch,
            model={"name": str(scratch / "esm")},
            adapter=adapter,
            data={"train": str(scratch / "train.fasta"), **common},
            training={"steps": options.steps, "batch_size": 8, "learning_rate": rate, "keep_best": False},
        )
        yield {"task": "families", "method": method, "rank": rank, "parameters": found.trainable_parameters} | {
            "before": found.base["perplexity"],
            "after": found.adapted["perplexity"],
            "seconds": found.seconds,
        }


def wanted(rates: dict[str, tuple[Any, float]], options: argparse.Namespace) -> Iterator[tuple[str, tuple[Any, float]]]:
    """Rank and learning rate of the methods that were asked for."""
    return ((method, own) for method, own in rates.items() if method in options.methods)


def run(task: str, scratch: Path, *, out: str = "out", **groups: dict[str, Any]) -> Any:
    """One run of `protfold lm TASK`."""
    from protfold_peft.configuration import check
    from protfold_peft.language import run as run_task
    from protfold_peft.language.config import CONFIGS

    groups["model"] = {"device": "cpu", **groups["model"]}
    groups["training"] = {"log_every": 20, "eval_every": 10**6, **groups["training"]}
    config = check(CONFIGS[task], {"task": task, "out": str(scratch / out), **groups}, {}, "the benchmark")
    return run_task(config, overwrite=True)


def evaluate(folder: Path, records: str) -> Any:
    """`protfold lm evaluate`."""
    from protfold_peft.language import evaluate as evaluate_run

    return evaluate_run(folder, records)


PARTS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"sft": sft, "dpo": dpo, "glue": glue, "esm": esm}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and standard deviation over the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"], row.get("budget", "")), []).append(row)
    for (task, method, budget), own in groups.items():
        after = [row["after"] for row in own]
        spread = f" ± {statistics.stdev(after):.2f}" if len(after) > 1 else ""
        yield (
            f"{task:>9} {method:>13} {budget!s:>8} {own[0]['parameters']:>9,} parameters"
            + (f", rate {own[0]['rate']:g}" if "rate" in own[0] else "")
            + f": {own[0]['before']:.3f} -> "
            f"{statistics.mean(after):.3f}{spread} (n={len(after)}, {sum(row['seconds'] for row in own):.0f} s)"
            + (f" reward accuracy {own[0]['reward_accuracy']:.3f}" if "reward_accuracy" in own[0] else "")
        )


def main() -> None:
    """Run the parts, print their tables, and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--data", type=Path, default=os.environ.get("PROTFOLD_TEST_DATA", "../shared/data"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=60, help="of every adapter")
    parser.add_argument("--pretraining", type=int, default=600, help="steps of the encoders of glue and esm")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of sft; the others have one")
    parser.add_argument("--tune", action="store_true", help="try three learning rates for every adapter of sft")
    parser.add_argument("--train-lines", type=int, default=1000, help="of sft, evenly spaced, of the 3,700 or so")
    parser.add_argument("--test-lines", type=int, default=120, help="of sft, evenly spaced, of 4,693")
    parser.add_argument("--pairs", type=int, default=400, help="of dpo, a quarter of them held out")
    parser.add_argument("--csv", type=Path, help="file of all rows")
    options = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from protfold_peft.runtime import quieten

    quieten()
    rows: list[dict[str, Any]] = []
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts:
            for row in PARTS[part](options.data, Path(scratch), options):
                rows.append(row)
                print(*summary([row]), flush=True)
                if options.csv:
                    write(options.csv, rows)
    print(f"\nall, in {time.process_time() - start:.0f} s of CPU time", *summary(rows), sep="\n")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Save the table, whole or not at all."""
    from protfold_peft.files import replacing

    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
