"""The records and untrained encoders of `benchmarks/language.py`: a maker for every part, which fills a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EsmConfig,
    EsmTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers.models.esm.configuration_esm import get_default_vocab_list

TEST_LINES, TUNE_LINES, TRAIN_LINES, PAIRS = 120, 60, 1000, 800


def prepare_sft(part: str, folder: Path, data: Path) -> None:
    """Evenly spaced lines; those for choosing have tables that training never sees."""
    texts = (data / f"language/instruct/e2e_{name}.txt" for name in ("valid", "test"))
    lines, test = (path.read_text(encoding="utf-8").splitlines() for path in texts)
    kept_out = set(sorted({line.partition("||")[0] for line in lines})[::5])
    parts = {
        "train": ([line for line in lines if line.partition("||")[0] not in kept_out], TRAIN_LINES),
        "tune": ([line for line in lines if line.partition("||")[0] in kept_out], TUNE_LINES),
        "test": (test, TEST_LINES),
    }
    for name, (found, count) in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(spread(found, count)), encoding="utf-8")


def spread(lines: list[str], count: int) -> list[str]:
    """So many lines, evenly spaced; all if there are no more."""
    count = min(count, len(lines))
    return [lines[i * len(lines) // count] for i in range(count)]


def prepare_dpo(part: str, folder: Path, data: Path) -> None:
    """Two stories of the model's own to each of 42 beginnings, of which the one with more sentences is chosen.

    The beginnings of the pairs for choosing and for the test are of no other part.
    """
    model = AutoModelForCausalLM.from_pretrained(data / "language/stories260K").eval()
    tokenizer = AutoTokenizer.from_pretrained(data / "language/stories260K", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    names, things = ("Lily", "Tom", "Ben", "Mia", "Sam", "Sue"), ("dog", "ball", "tree", "cat", "car", "bird", "boat")
    prompts = [f"Once upon a time, {name} had a {thing}." for name in names for thing in things]
    # By a step that meets every name and every thing: 24 beginnings to learn from, 6 to choose by, 12 to test.
    order = [prompts[i * 11 % len(prompts)] for i in range(len(prompts))]
    parts = {
        prompt: ("test", "train", "tune", "train", "test", "train", "train")[i % 7] for i, prompt in enumerate(order)
    }
    torch.manual_seed(0)
    pairs: list[dict[str, str]] = []
    while len(pairs) < PAIRS:
        tokens = tokenizer(prompts * 8, return_tensors="pt", padding=True)
        with torch.inference_mode():
            made = model.generate(**tokens, do_sample=True, max_new_tokens=60, pad_token_id=tokenizer.eos_token_id)
        texts = tokenizer.batch_decode(made[:, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        half = len(texts) // 2
        for prompt, *both in zip(prompts * 4, texts[:half], texts[half:]):
            fewer, more = sorted(both, key=lambda text: text.count("."))
            if more.count(".") >= fewer.count(".") + 2:
                pairs.append({"prompt": prompt, "chosen": more, "rejected": fewer})
    for name, most in (("train", PAIRS), ("tune", 60), ("test", 120)):
        own = [json.dumps(pair) + "\n" for pair in pairs[:PAIRS] if parts[pair["prompt"]] == name]
        (folder / f"{name}.jsonl").write_text("".join(own[:most]))


def prepare_glue(part: str, folder: Path, data: Path) -> None:
    """For training and choosing without what is in the test file; 400 lines to choose by, 1,000 to test."""
    files = {"sst2": ("train", "dev", "test"), "cola": ("train", "val", "dev")}[part]
    seen: set[str] = set()
    for name, file in reversed(list(zip(("train", "tune", "test"), files))):
        lines = (data / f"language/glue/{part}_{file}.tsv").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if sentence(part, line) not in seen]
        kept = spread(kept, {"train": len(kept), "tune": 400, "test": 1000}[name])
        seen |= {sentence(part, line) for line in lines}
        (folder / f"{name}.tsv").write_text("\n".join(kept) + "\n", encoding="utf-8")


def sentence(part: str, line: str) -> str:
    """The text of a line of a task's file."""
    return line.split("\t")[3 if part == "cola" else 0]


def prepare_text(part: str, folder: Path, data: Path) -> None:
    """The training text of both tasks; an untrained RoBERTa of 4 layers of width 128, with 2,000 byte pairs."""
    texts = []
    for task in ("sst2", "cola"):
        lines = (data / f"language/glue/{task}_train.tsv").read_text(encoding="utf-8").splitlines()
        texts += [sentence(task, line) for line in lines]
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    untrained_roberta(folder / "untrained", texts)


def untrained_roberta(folder: Path, texts: list[str]) -> None:
    """Write a tokenizer made from the texts and a RoBERTa with its configuration, without weights."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=2_000, special_tokens=special, show_progress=False)
    tokenizer._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special))
    names |= {"cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **names).save_pretrained(folder)
    RobertaConfig(
        vocab_size=2_000,
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


def prepare_esm(part: str, folder: Path, data: Path) -> None:
    """Chains to pre-train on, and five families that are none of them; an untrained ESM-2 of 4 layers of width 96."""
    with (data / "structures/manifest.tsv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["sequence"]]
    learnt = [row for row in rows if row["role"] == "family" and row["part"] == "train"]
    chains = {
        "pretrain": [row for row in rows if row["role"] == "pretrain"],
        "train": [row for i, row in enumerate(learnt) if i % 5],
        "tune": learnt[::5],
        "test": [row for row in rows if row["role"] == "family" and row["part"] == "test"],
    }
    for name, own in chains.items():
        text = "".join(f">{row['name']}\n{row['sequence'].replace('-', '')}\n" for row in own)
        (folder / f"{name}.fasta").write_text(text)
    untrained = folder / "untrained"
    untrained.mkdir()
    (untrained / "vocab.txt").write_text("\n".join(get_default_vocab_list()))
    EsmTokenizer(str(untrained / "vocab.txt")).save_pretrained(untrained)
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
    ).save_pretrained(untrained)
