"""Every command of the program on inputs so small that it takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from adapter_methods import make_config
from comparison.conftest import stretch, write
from folding.test_convert import write_esm2
from peft import get_peft_model
from tiny_models import letters_tokenizer, save_tiny_esm, save_tiny_llama, save_tiny_roberta
from transformers import AutoModelForCausalLM, EsmForMaskedLM

from protfold_peft import language
from protfold_peft.adapters.folders.export import export_lora
from protfold_peft.configuration import check
from protfold_peft.language.config import CONFIGS
from protfold_peft.structure import read_structure

REPOSITORY = Path(__file__).resolve().parents[2]
_FEW = ["training.steps=1", "training.warmup_steps=0", "data.crop_size=16", "data.max_length=60", "--device", "cpu"]
_NO_PROTEIN_HEADS = ("side_chain_fape", "torsion", "distogram", "plddt", "aligned_error")
_LANGUAGE = {"classify": "roberta", "sft": "llama", "dpo": "llama", "mlm": "base"}
_RECORDS = {
    "classify": ("texts.tsv", "yes\t1\nno\t0\nyes yes\t1\nno no\t0\n"),
    "sft": ("sums.txt", "1 + 1 = ||2\n2 + 1 = ||3\n"),
    "dpo": ("pairs.jsonl", '{"prompt": "yes? ", "chosen": "yes", "rejected": "no"}\n' * 2),
    "mlm": ("in.fasta", ">one\nNLYIQWLKDGGPSSGRPPPS\n>two\nMKTAYIAKQR\n"),
}
_READ_AS = {"classify": {"columns": ["text", "label"]}, "sft": {"separator": "||"}, "dpo": {}, "mlm": {}}


@dataclass(frozen=True)
class Place:
    """Where a command runs: `work` holds its inputs, `out` is where it writes."""

    work: Path
    out: Path


def _placed(place: Place, words: tuple[str, ...]) -> list[str]:
    folders = {"work/": place.work, "out/": place.out}
    return [
        next((str(folder / word[len(mark) :]) for mark, folder in folders.items() if word.startswith(mark)), word)
        for word in words
    ]


def _words(*words: str) -> Callable[[Place], list[str]]:
    return lambda p: _placed(p, words)


def _lm(task: str) -> Callable[[Place], list[str]]:
    model, (records, _) = _LANGUAGE[task], _RECORDS[task]
    return lambda p: [
        *("lm", task, str(p.work / f"{task}.yaml"), f"model.name={p.work / model}"),
        *(f"data.train={p.work / records}", f"data.validation={p.work / records}", "-o", str(p.out / task)),
    ]


COMMANDS: dict[str, Callable[[Place], list[str]]] = {
    "predict": _words("predict", "work/one.fasta", "-o", "out/p", "--device", "cpu", "--recycles", "0"),
    "init": _words("init", "work/chains", "-o", "out/c.yaml"),
    "prepare": _words("prepare", "work/chains", "-o", "out/d", "--processes", "1", "--search", "builtin"),
    "finetune": lambda p: [
        *("finetune", str(p.work / "run.yaml"), f"data.folder={p.work / 'chains'}", *_FEW, "-o", str(p.out / "r"))
    ],
    "evaluate": _words(
        *("evaluate", "work/chains", "work/chains", "--csv", "out/s.csv", "--json", "out/s.json"),
        *("--lddt-pdb", "out/lddt", "--plot", "out/plots"),
    ),
    "compare": lambda p: [
        *("compare", str(p.work / "compare.yaml"), f"finetune.data.folder={p.work / 'compared/train'}"),
        f"finetune.data.validation.folder={p.work / 'compared/validation'}",
        *(f"targets.small.folder={p.work / 'compared/targets'}", "-o", str(p.out / "compared")),
    ],
    "data": _words("data", "casp14", "--from", "work/targets", "-o", "out/t"),
    "convert": _words("convert", "work/esm2_t3_tiny.pt", "-o", "out/esm2"),
    "bench": _words(
        *("bench", "scores", "--size", "mini", "--device", "cpu", "--threads", "1", "--seconds", "0"),
        *("--lengths", "16", "-o", "out/bench.json"),
    ),
    "to-lora": _words("adapter", "to-lora", "work/adapter", "-o", "out/lora"),
    "from-lora": _words(
        *("adapter", "from-lora", "work/lora", "-o", "out/fitted", "--method", "lorta", "--rank", "2"),
        *("--base", "work/base", "--restarts", "1"),
    ),
    "merge": _words("adapter", "merge", "work/base", "work/adapter", "-o", "out/merged"),
    "combine": lambda p: [
        *("adapter", "combine", f"{p.work / 'adapter'}=0.5", f"{p.work / 'other'}=0.5", "-o", str(p.out / "both"))
    ],
    **{task: _lm(task) for task in _LANGUAGE},
    "lm-evaluate": _words(
        *("lm", "evaluate", "work/run", "--data", "work/in.fasta", "--model", "work/base", "--json", "out/lm.json")
    ),
    "serve-batch": _words(
        *("lm", "serve-batch", "work/requests.jsonl", "--model", "work/llama", "--device", "cpu"),
        *("-o", "out/answers.jsonl", "--max-new-tokens", "3"),
    ),
}
# These write nothing.
READING: dict[str, Callable[[Place], list[str]]] = {
    "info": _words("adapter", "info", "work/adapter"),
    "doctor": _words("doctor", "--no-fold"),
    "help": _words("predict", "--help"),
    "completion": _words("--show-completion", "bash"),
}


def make_inputs(folder: Path, structures: Path) -> Path:
    """What all of these read."""
    for name, text in _RECORDS.values():
        (folder / name).write_text(text)
    (folder / "one.fasta").write_text(">one\nNLYIQWLKDGGPSSGRPPPS\n")
    (folder / "chains").mkdir()
    for name in ("1AS5_A.pdb", "2BEG_A.pdb"):
        shutil.copy(structures / name, folder / "chains" / name)
    shutil.copytree(folder / "chains", folder / "targets")
    shutil.copy(REPOSITORY / "configs" / "first_run.yaml", folder / "run.yaml")
    _models(folder)
    for task, model in _LANGUAGE.items():
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(_language_run(folder, task, model)))
    settings = {**_language_run(folder, "mlm", "base"), "out": str(folder / "run")}
    data = {"train": str(folder / "in.fasta"), "validation": str(folder / "in.fasta")}
    settings |= {"data": {**settings["data"], **data}, "model": {"name": str(folder / "base"), "device": "cpu"}}
    language.run(check(CONFIGS["mlm"], settings, {}, "here"))
    _comparison(folder, structures)
    return folder


def _models(folder: Path) -> None:
    base = save_tiny_esm(folder / "base")
    for seed, name in enumerate(("adapter", "other")):
        torch.manual_seed(seed)
        settings = make_config("lorta", r=2, target_modules=["query"])
        get_peft_model(EsmForMaskedLM.from_pretrained(base), settings).save_pretrained(folder / name)
    export_lora(folder / "adapter", folder / "lora")
    write_esm2(folder)
    letters = letters_tokenizer()
    letters.save_pretrained(save_tiny_llama(folder / "llama"))
    save_tiny_roberta(folder / "roberta", letters)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "llama"), make_config("lorta"))
    tuned.save_pretrained(folder / "llama_adapter")
    requests = [{"prompt": "who?", "adapter": None}, {"prompt": "a", "adapter": "llama_adapter"}]
    (folder / "requests.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))


def _language_run(folder: Path, task: str, model: str) -> dict:
    return {
        "task": task,
        "model": {"name": model, "device": "cpu"},
        "adapter": {"method": "lorta", "rank": 2},
        "data": {"train": "given", "max_length": 62, **_READ_AS[task]},
        "training": {"steps": 2, "batch_size": 2, "eval_every": 1, "log_every": 1},
    }


def _comparison(folder: Path, structures: Path) -> None:
    """The unadapted model and one adapter, on one target."""
    parts = {
        "train/1A7G.pdb": ("1A7G_E", 1, 16),
        "train/1LCD.pdb": ("1LCD_A", 1, 16),
        "validation/2BEG.pdb": ("2BEG_A", 1, 20),
        "targets/T0001-D1.pdb": ("1A8O_A", 11, 40),
    }
    for name, (chain, first, last) in parts.items():
        whole = read_structure(structures / f"{chain}.pdb").chains[0]
        write(stretch(whole, first, last), folder / "compared" / name)
    settings = {
        "finetune": {
            "model": {"name": "protfold-mini-untrained", "device": "cpu"},
            "adapter": {"init": "orthogonal"},
            "data": {"folder": "given", "validation": {"folder": "given"}, "crop_size": 16},
            "loss": {"fape": 1.0, **dict.fromkeys(_NO_PROTEIN_HEADS, 0.0)},
            "training": {"steps": 1, "batch_size": 2, "trackers": []},
        },
        "methods": {"lorta": {"method": "lorta", "ranks": [1]}},
        "learning_rates": [0.03],
        "seeds": [0],
        "targets": {"small": {"folder": "given"}},
        "leakage": {"search": "builtin"},
        "report": {"draws": 100},
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(settings))
