"""Everything that reads a file of the user's, and sound files to be damaged for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adapter_methods import make_config
from peft import LoraConfig, get_peft_model
from tiny_models import randomise, tiny_config
from transformers import EsmConfig, EsmForMaskedLM

from protfold_peft.adapters import load_adapter
from protfold_peft.adapters.folders.info import adapter_info
from protfold_peft.comparison import ComparisonConfig
from protfold_peft.configuration import read_config
from protfold_peft.data import read_sequences
from protfold_peft.data.prepare.inputs import read_table
from protfold_peft.errors import ProtfoldError
from protfold_peft.evaluation.pairs import read_pair_table
from protfold_peft.folding.fair_esm import read_checkpoint
from protfold_peft.folding.inputs import gather
from protfold_peft.folding.load import load_model
from protfold_peft.folding.model import EsmFold
from protfold_peft.language.config import CONFIGS
from protfold_peft.language.records import read_records
from protfold_peft.structure import read_structure
from protfold_peft.structure.fasta import read_fasta
from protfold_peft.training.config import FinetuneConfig

REPOSITORY = Path(__file__).resolve().parents[1]
# Larger files say no more about a reader, and each costs time at every example.
_LARGEST = 110_000


@dataclass(frozen=True)
class Reader:
    """A reader and its seeds.

    Attributes:
        read: Reads the file at this path.
        seeds: Sound files, or such as are awkward but can be read.
        beside: Of a folder that is read as a whole, of which one file is damaged; its name is put in the path given.
    """

    read: Callable[[Path], object]
    seeds: tuple[Path, ...]
    beside: bool = False


def make_readers(made: Path, awkward: Path | None) -> dict[str, Reader]:
    """All readers; `made` is an empty folder for seeds, `awkward` holds structure files from elsewhere."""
    structures = [path for path in (REPOSITORY / "structures").iterdir() if path.suffix in {".pdb", ".cif"}]
    if awkward is not None:
        structures += list(awkward.iterdir())
    structures = sorted(path for path in structures if path.stat().st_size < _LARGEST)
    configs = REPOSITORY / "configs"
    adapter, lora, model = _adapters(made)
    return {
        "pdb": Reader(read_structure, tuple(path for path in structures if ".pdb" in path.suffixes)),
        "mmcif": Reader(read_structure, tuple(path for path in structures if ".cif" in path.suffixes)),
        "fasta": Reader(_fasta, (REPOSITORY / "structures" / "examples.fasta",)),
        "finetune_yaml": Reader(lambda p: read_config(FinetuneConfig, p), (configs / "first_run.yaml",)),
        "compare_yaml": Reader(lambda p: read_config(ComparisonConfig, p), tuple(configs.glob("compare_*.yaml"))),
        "mlm_yaml": Reader(lambda p: read_config(CONFIGS["mlm"], p), tuple(configs.glob("mlm_*.yaml"))),
        "adapter": Reader(_on(_small_esm, adapter_info), _files(adapter), beside=True),
        "adapter_load": Reader(_on(_small_esm, _put_on), _files(adapter), beside=True),
        "lora_load": Reader(_on(_small_esm, _put_on), _files(lora), beside=True),
        "model": Reader(lambda p: load_model(str(p.parent), device="cpu"), _files(model), beside=True),
        "fair_esm": Reader(read_checkpoint, (_fair_esm(made),)),
        "pairs": Reader(
            read_pair_table, (_written(made / "pairs.csv", "model,reference,model_chain\na.pdb,b.pdb,A\n"),)
        ),
        "table": Reader(read_table, (_chain_table(made),)),
        "records": Reader(lambda p: read_records(str(p), wanted=("text",)), _records(made)),
    }


def _fasta(path: Path) -> object:
    return gather([str(path)]), read_sequences(path), read_fasta(path)


def _small_esm() -> EsmForMaskedLM:
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        position_embedding_type="rotary",
        pad_token_id=1,
        token_dropout=False,
    )
    return EsmForMaskedLM(config)


def _on(make: Callable[[], Any], use: Callable[..., object]) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        return use(path.parent) if use is adapter_info else use(make(), path.parent)

    return read


def _put_on(model: Any, folder: Path) -> object:
    return load_adapter(model, folder)


def _adapters(made: Path) -> tuple[Path, Path, Path]:
    adapter, lora, model = made / "adapter", made / "lora", made / "model"
    get_peft_model(_small_esm(), make_config("lorta", target_modules=["query", "key"])).save_pretrained(adapter)
    get_peft_model(_small_esm(), LoraConfig(r=2, target_modules=["query"])).save_pretrained(lora)
    network = EsmFold(tiny_config())
    randomise(network)
    network.save_pretrained(model)
    for folder in (adapter, lora, model):
        (folder / "README.md").unlink(missing_ok=True)
    return adapter, lora, model


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in {".json", ".safetensors"}))


def _fair_esm(made: Path) -> Path:
    path = made / "esm2_tiny.pt"
    torch.save({"cfg": {"model": {"encoder_layers": 1}}, "model": {"layers.0.fc1.weight": torch.zeros(3, 2)}}, path)
    return path


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _chain_table(made: Path) -> Path:
    for name in ("a.pdb", "b.pdb"):
        (made / name).write_text("ATOM\n")
    return _written(
        made / "chains.csv", "file,chain,sequence,name,resolution,date\na.pdb,A,MKT,one,1.5,2020-05-01\nb.pdb,,,,,\n"
    )


def _records(made: Path) -> tuple[Path, ...]:
    return (
        _written(made / "records.jsonl", '{"text": "one", "label": 1}\n{"text": "two", "label": 0}\n'),
        _written(made / "records.json", '[{"text": "one", "label": 1}, {"text": "two", "label": 0}]\n'),
        _written(made / "records.csv", 'text,label\n"one, or two",1\nthree,0\n'),
        _written(made / "records.tsv", "text\tlabel\none\t1\n"),
    )


def damage_into(reader: Reader, seed: Path, data: bytes, folder: Path) -> Path:
    """Write `data` in the place of `seed`, with the other files of its folder where the reader wants them."""
    if reader.beside:
        shutil.copytree(seed.parent, folder, dirs_exist_ok=True)
    else:
        folder.mkdir(exist_ok=True)
    path = folder / seed.name
    path.write_bytes(data)
    return path


def read_damaged(reader: Reader, source: Path, data: bytes, folder: Path) -> None:
    """Read `data` in the place of `source`: it is read, or refused in one line that names the file.

    Raises:
        AssertionError: Anything else happens; what did is its cause.
    """
    path = damage_into(reader, source, data, folder)
    try:
        reader.read(path)
    except ProtfoldError as error:
        message = str(error)
        assert message.splitlines() == [message], (source.name, message)
        assert path.name in message or path.parent.name in message, (source.name, message)
    except Exception as error:
        raise AssertionError(f"{source.name}: {type(error).__name__}: {error}") from error
