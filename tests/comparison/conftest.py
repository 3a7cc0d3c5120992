"""A small comparison: two stretches to learn, one to choose by, two targets, one of them a domain of a longer chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_chains import moved, rotation, taken

from protfold_peft.structure import Chain, Structure, read_structure, write_pdb

# The domain's first and last place in its target, from 1.
DOMAIN = (11, 50)


def stretch(chain: Chain, first: int, last: int, *, numbers_from: int = 1) -> Chain:
    """Residues of these places (from 1), with new numbers and no SEQRES."""
    part = taken(chain, list(range(first - 1, last)))
    numbers = np.arange(len(part)) + numbers_from
    return replace(part, id="A", residue_numbers=numbers, seqres=None, seqres_index=None)


def write(chain: Chain, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pdb(Structure(name=path.stem, chains=(chain,)), path)


@pytest.fixture(scope="session")
def small_data(structures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `train`, `validation` and `targets`; the latter with a manifest and the FASTA of whole targets."""
    root = tmp_path_factory.mktemp("comparison_data")
    chains = {name: read_structure(structures / f"{name}.pdb").chains[0] for name in ("1A7G_E", "1LCD_A", "2BEG_A")}
    write(stretch(chains["1A7G_E"], 1, 16), root / "train" / "1A7G.pdb")
    write(stretch(chains["1LCD_A"], 1, 16), root / "train" / "1LCD.pdb")
    write(stretch(chains["2BEG_A"], 1, 20), root / "validation" / "2BEG.pdb")
    whole = read_structure(structures / "1A8O_A.pdb").chains[0]
    # Numbers that are those of nothing, and coordinates that are elsewhere.
    domain = moved(stretch(whole, *DOMAIN, numbers_from=301), rotation(3), (10, -20, 5))
    write(domain, root / "targets" / "T0001-D1.pdb")
    write(stretch(chains["1LCD_A"], 22, 51), root / "targets" / "T0002-D1.pdb")
    (root / "targets" / "manifest.tsv").write_text(
        "target\tclass\trange\tpdb_id\trelease_date\n"
        f"T0001-D1\tFM\t{DOMAIN[0]}-{DOMAIN[1]}\t1a8o\t1998-09-16\n"
        "T0002-D1\tTBM-easy\t1-30\t1lcd\t1994-01-31\n"
    )
    (root / "targets" / "targets.fasta").write_text(f">T0001 whole\n{whole.sequence}\n")
    return root


@pytest.fixture(scope="session")
def settings(small_data: Path) -> Callable[..., dict[str, Any]]:
    """`settings(methods={...}, seeds=[0])`: a configuration on the small data, as YAML has it."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "finetune": {
                "model": {"name": "protfold-mini-untrained", "device": "cpu"},
                "adapter": {"init": "orthogonal"},
                "data": {
                    "folder": str(small_data / "train"),
                    "validation": {"folder": str(small_data / "validation")},
                    "crop_size": 16,
                },
                "loss": {
                    "fape": 1.0,
                    **dict.fromkeys(("side_chain_fape", "torsion", "distogram", "plddt", "aligned_error"), 0.0),
                },
                "training": {"steps": 3, "batch_size": 2, "trackers": []},
            },
            "methods": {
                "lora": {"method": "peft_lora", "init": "authors", "ranks": [1, 2]},
                "lorta": {"method": "lorta", "ranks": [1, 2]},
            },
            "learning_rates": [0.03],
            "seeds": [0],
            "lora": "lora",
            "targets": {"small": {"folder": str(small_data / "targets")}},
            "leakage": {"search": "builtin"},
            "report": {"draws": 500},
            **changes,
        }

    return make


@pytest.fixture(scope="session")
def config_file(settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same in a file."""

    def make(**changes: Any) -> Path:
        path = tmp_path_factory.mktemp("config") / "comparison.yaml"
        path.write_text(yaml.safe_dump(settings(**changes)))
        return path

    return make
