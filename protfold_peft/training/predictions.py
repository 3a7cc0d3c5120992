"""Predictions of a run's chains: kept beside an unfinished run, and laid over the experiment for the report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protfold_peft.data import TrainingChain
from protfold_peft.errors import CheckpointError
from protfold_peft.files import replacing
from protfold_peft.metrics import tm_score
from protfold_peft.structure.pdb_writer import write_pdb
from protfold_peft.structure.residues import ATOM_INDEX, ONE_TO_THREE
from protfold_peft.structure.types import Chain, Structure
from protfold_peft.training.evaluate import Folded

CA = ATOM_INDEX["CA"]


def save(path: Path, folded: Sequence[Folded]) -> None:
    """Write predictions, with their scores, as one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for place, one in enumerate(folded):
        tensors |= {f"{place}.atoms": one.atoms, f"{place}.plddt": one.plddt, f"{place}.true_lddt": one.true_lddt}
    facts = [{"name": one.name, "residues": one.residues, "scores": dict(one.scores)} for one in folded]
    with replacing(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"facts": json.dumps(facts)}
        )


def read(path: Path) -> list[Folded]:
    """Read them back.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return [
                Folded(
                    **facts,
                    atoms=file.get_tensor(f"{place}.atoms"),
                    plddt=file.get_tensor(f"{place}.plddt"),
                    true_lddt=file.get_tensor(f"{place}.true_lddt"),
                )
                for place, facts in enumerate(json.loads(file.metadata()["facts"]))
            ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; start anew with --overwrite") from error


def superposed(chain: TrainingChain, base: Folded, adapted: Folded) -> tuple[str, str, str]:
    """PDB texts of the experiment and both predictions, each at its best TM-score's superposition."""
    true = torch.from_numpy(chain.atom_positions).double()
    mask = torch.from_numpy(chain.atom_mask)

    def laid_over(one: Folded) -> str:
        atoms = one.atoms.double()
        modelled = (atoms != 0).any(dim=-1)
        found = tm_score(atoms[None, :, CA], true[None, :, CA], mask[None, :, CA])
        moved = found.superposition.apply(atoms.reshape(1, -1, 3)).reshape(atoms.shape)
        return _pdb(chain, moved, modelled, one.plddt)

    return _pdb(chain, true, mask, None), laid_over(base), laid_over(adapted)


def _pdb(chain: TrainingChain, atoms: Tensor, mask: Tensor, plddt: Tensor | None) -> str:
    """A chain as the text of a PDB file, pLDDT as B-factors."""
    places = np.flatnonzero(mask.any(dim=-1).numpy())
    own = mask.numpy()[places]
    factors = np.zeros(own.shape) if plddt is None else np.where(own, plddt.numpy()[places][:, None], 0.0)
    sequence = "".join(chain.sequence[place] for place in places)
    record = Chain(
        id="A",
        sequence="".join(letter if letter in ONE_TO_THREE else "X" for letter in sequence),
        residue_names=tuple(ONE_TO_THREE.get(letter, "UNK") for letter in sequence),
        residue_numbers=places + 1,
        insertion_codes=("",) * len(places),
        atom_positions=np.where(own[..., None], atoms.numpy()[places], 0.0),
        atom_mask=own,
        b_factors=factors,
        seqres=None,
        seqres_index=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.pdb"
        write_pdb(Structure(name=chain.name[:40], chains=(record,)), path)
        return path.read_text(encoding="utf-8")
