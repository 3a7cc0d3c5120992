"""Scores of a model on the targets: each is folded, its domain cut out, matched by alignment, scored and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protfold_peft.comparison.targets import Span, Target
from protfold_peft.errors import ProtfoldError
from protfold_peft.evaluation.matching import Matched, match_structures
from protfold_peft.evaluation.scoring import Scores, score_all
from protfold_peft.folding.load import LoadedModel
from protfold_peft.folding.predict import predict
from protfold_peft.metrics.calibration import plddt_calibration
from protfold_peft.metrics.clashes import clashes
from protfold_peft.metrics.correspondence import ALIGNMENT, MIN_IDENTITY
from protfold_peft.metrics.tm_score import tm_score
from protfold_peft.runtime import progress_bar
from protfold_peft.structure import Chain, Structure, write_pdb
from protfold_peft.structure.residues import ATOM_INDEX

_CA = ATOM_INDEX["CA"]
SCORES = ("tm_score", "gdt_ts", "gdt_ha", "lddt_ca", "lddt")
# In the order of the results' columns: scores 0..1, then angstrom, points of pLDDT 0..100, a correlation, a count.
MEASURES = (*SCORES, "rmsd_ca", "plddt", "plddt_error", "plddt_bias", "plddt_pearson", "clashes")

Row = dict[str, Any]


def judge(model: LoadedModel, targets: Sequence[Target], recycles: int | None, models: Path | None) -> list[Row]:
    """Fold and score every target.

    Args:
        model: What folds.
        targets: In the order of the rows.
        recycles: Passes after the first; None: as the weights were trained.
        models: Folder for the models, each laid over its experiment, as `SET/TARGET.pdb.gz`; None keeps none.

    Returns:
        A row of every target: `set`, `target`, `class`, `length`, `folded` residues, and `MEASURES`, None where
        undefined.

    Raises:
        ProtfoldError: A target cannot be folded or scored; the message names it.
    """
    rows = []
    with progress_bar("targets") as progress:
        for target in progress.track(targets, total=len(targets), description="judging on the targets"):
            prediction = predict(model, target.sequence, name=target.name, recycles=recycles)
            part = cut_out(prediction.structure, target.span)
            # Thousands of small operations: a GPU would wait for each, and it is shared with other workers.
            row, moved = score(part, target, torch.device("cpu"))
            rows.append(row)
            if models is not None:
                write_pdb(moved, models / target.group / f"{target.name}.pdb.gz")
    return rows


def cut_out(structure: Structure, span: Span | None) -> Structure:
    """The residues of `span` (places from 1 in the folded sequence) of a predicted chain; all for None."""
    if span is None:
        return structure
    chain = structure.chains[0]
    rows = np.concatenate([np.arange(first - 1, last) for first, last in span])
    part = Chain(
        id=chain.id,
        sequence="".join(chain.sequence[row] for row in rows),
        residue_names=tuple(chain.residue_names[row] for row in rows),
        residue_numbers=chain.residue_numbers[rows],
        insertion_codes=tuple(chain.insertion_codes[row] for row in rows),
        atom_positions=chain.atom_positions[rows],
        atom_mask=chain.atom_mask[rows],
        b_factors=chain.b_factors[rows],
    )
    return replace(structure, chains=(part,))


def score(model: Structure, target: Target, device: torch.device) -> tuple[Row, Structure]:
    """Scores of a predicted domain, and the domain laid over the experiment at its TM-score.

    Raises:
        ProtfoldError: The residues do not match, or a score fails.
    """
    try:
        (pair,) = match_structures(model, target.reference, way=ALIGNMENT, min_identity=MIN_IDENTITY)
        (result,) = score_all([pair], search="tmscore", normalise="reference", device=device)
        if isinstance(result, Exception):
            raise result
    except (ProtfoldError, ValueError, RuntimeError) as error:
        raise ProtfoldError(f"target {target.name} cannot be scored: {error}") from error
    row: Row = {
        "set": target.group,
        "target": target.name,
        "class": target.kind,
        "length": target.length,
        "folded": len(target.sequence),
        **{name: _defined(getattr(result, name)) for name in (*SCORES, "rmsd_ca")},
        **_confidence(pair, result),
        "clashes": _clashes(model.chains[0]),
    }
    return row, _laid_over(model, pair)


def _confidence(pair: Matched, result: Scores) -> dict[str, float | None]:
    plddt = torch.from_numpy(pair.plddt)[None]
    found = plddt_calibration(plddt.nan_to_num(), torch.from_numpy(result.lddt_per_residue)[None], ~plddt.isnan())
    return {
        "plddt": _defined(float(np.nanmean(pair.plddt))),
        "plddt_error": _defined(found.error.item()),
        "plddt_bias": _defined(found.bias.item()),
        "plddt_pearson": _defined(found.pearson.item()),
    }


def _clashes(chain: Chain) -> int:
    positions, mask = torch.from_numpy(chain.atom_positions)[None], torch.from_numpy(chain.atom_mask)[None]
    return int(clashes(positions, mask).count)


def _laid_over(model: Structure, pair: Matched) -> Structure:
    arrays = (pair.model_positions[:, _CA], pair.reference_positions[:, _CA])
    masks = (pair.reference_mask[:, _CA], pair.model_mask[:, _CA])
    found = tm_score(*(torch.from_numpy(array)[None].double() for array in arrays), *map(_batched, masks))
    chain = model.chains[0]
    atoms = torch.from_numpy(chain.atom_positions).double()
    moved = found.superposition.apply(atoms.reshape(1, -1, 3)).reshape(atoms.shape).numpy()
    moved = np.where(chain.atom_mask[..., None], moved, 0.0)
    return replace(model, chains=(replace(chain, id=chain.id or "A", atom_positions=moved),))


def _batched(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
