"""Sequences in, predictions out: one padded batch through the model, and its results in the units users know."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from protfold_peft.errors import NonFiniteError
from protfold_peft.folding import confidence
from protfold_peft.folding.encode import EncodedSequence, collate, encode_sequence
from protfold_peft.folding.load import LoadedModel
from protfold_peft.folding.mini import UNTRAINED_WARNING
from protfold_peft.folding.model import EsmFoldOutput
from protfold_peft.folding.types import Prediction, Record
from protfold_peft.structure.residues import ONE_TO_THREE, RESTYPES
from protfold_peft.structure.types import Chain, Structure
from protfold_peft.version import __version__

_RESIDUE_NAMES = ONE_TO_THREE | {"B": "ASX", "U": "SEC", "Z": "GLX", "O": "PYL"}
_CHAIN_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
CA = 1


def chain_id(index: int) -> str:
    """`A`..`Z`, `a`..`z`, `0`..`9`, then two characters (which only mmCIF holds)."""
    letters = len(_CHAIN_LETTERS)
    if index < letters:
        return _CHAIN_LETTERS[index]
    return chain_id(index // letters - 1) + _CHAIN_LETTERS[index % letters]


def predict(model: LoadedModel, sequence: str, *, name: str = "protein", recycles: int | None = None) -> Prediction:
    """Fold one sequence.

    Args:
        model: From `load_model`.
        sequence: One-letter codes, `:` between the chains of a complex.
        name: What it is called in outputs.
        recycles: Passes after the first; None: as the weights were trained.

    Raises:
        SequenceError: The sequence is empty or has an illegal letter.
        NonFiniteError: The model gave NaN or infinity.
    """
    return predict_batch(model, [Record(name, sequence.upper())], recycles=recycles)[0]


def predict_batch(model: LoadedModel, records: Sequence[Record], *, recycles: int | None = None) -> list[Prediction]:
    """Fold records in one padded batch.

    Args:
        model: From `load_model`.
        records: At least one.
        recycles: Passes after the first, 0 or more; None: as the weights were trained.

    Returns:
        One prediction for each record, in order.

    Raises:
        SequenceError: A record that cannot be encoded.
        NonFiniteError: A prediction holds NaN or infinity; the message names the record.
        torch.OutOfMemoryError: The batch does not fit.
    """
    recycles = model.default_recycles if recycles is None else recycles
    provenance = {
        "program": f"protfold {__version__}",
        "model": model.id,
        "adapter": model.adapter_hash or "none",
        "recycles": str(recycles),
        "precision": model.precision,
    }
    if model.untrained:
        provenance["warning"] = UNTRAINED_WARNING
    encoded = [encode_sequence(record.sequence) for record in records]
    with torch.no_grad():
        output = model.network(**collate(encoded, model.device), recycles=recycles)
    return [
        _prediction(output, row, record, sequence, provenance)
        for row, (record, sequence) in enumerate(zip(records, encoded))
    ]


def _prediction(
    output: EsmFoldOutput, row: int, record: Record, encoded: EncodedSequence, provenance: dict[str, str]
) -> Prediction:
    """One sample of a batch without padding and linkers, on the CPU."""
    keep = torch.nonzero(encoded.chain_index >= 0).squeeze(-1)
    chain_index = encoded.chain_index[keep]
    on_device = keep.to(output.positions.device)

    def kept(values: Tensor) -> np.ndarray:
        return values[row][on_device].double().cpu().numpy()

    to_atom37 = output.residx_atom37_to_atom14[row][on_device]
    atoms14 = output.positions[-1][row][on_device].double()
    atom37 = atoms14.gather(1, to_atom37[..., None].expand(-1, -1, 3)).cpu().numpy()
    atom_mask = kept(output.atom37_atom_exists).astype(bool)
    plddt = kept(output.plddt)[:, CA]
    logits = output.ptm_logits[row][on_device][:, on_device].float()
    ptm = float(confidence.ptm(logits[None], torch.ones(1, len(keep)))[0])
    pae = confidence.predicted_aligned_error(logits).double().cpu().numpy()
    iptm, pairs = None, None
    if int(chain_index.max()) > 0:
        iptm_value, pair_values = confidence.interface_ptm(logits, chain_index.to(logits.device))
        iptm, pairs = float(iptm_value), pair_values.double().cpu().numpy()
    for what, values in (("coordinates", atom37), ("pLDDT", plddt), ("PAE", pae)):
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"{record.name}: the model's {what} hold NaN or infinity; try --dtype fp32 or a smaller --chunk-size"
            )
    chains = tuple(
        _chain(i, sequence, atom37[chain_index == i], atom_mask[chain_index == i], plddt[chain_index == i])
        for i, sequence in enumerate(record.chains)
    )
    return Prediction(
        record=record,
        structure=Structure(name=record.name, chains=chains),
        plddt=plddt,
        ptm=ptm,
        iptm=iptm,
        chain_pair_iptm=pairs,
        pae=pae,
        max_pae=float(output.max_predicted_aligned_error),
        provenance=provenance,
    )


def _chain(index: int, sequence: str, atom37: np.ndarray, mask: np.ndarray, plddt: np.ndarray) -> Chain:
    n = len(sequence)
    return Chain(
        id=chain_id(index),
        sequence="".join(letter if letter in RESTYPES else "X" for letter in sequence),
        residue_names=tuple(_RESIDUE_NAMES[letter] for letter in sequence),
        residue_numbers=np.arange(1, n + 1),
        insertion_codes=("",) * n,
        atom_positions=np.where(mask[..., None], atom37, 0.0),
        atom_mask=mask,
        b_factors=np.where(mask, plddt[:, None], 0.0),
        seqres=None,
        seqres_index=None,
    )
