"""Scores of matched pairs: padded batches of similar length through the library.

Axis letters: `b` pairs of a batch, `n` residues of the longest reference in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from protfold_peft.errors import ProtfoldError
from protfold_peft.evaluation.geometry import geometry_of
from protfold_peft.evaluation.matching import Matched
from protfold_peft.metrics.gdt import gdt_ha, gdt_ts, tm_and_gdt
from protfold_peft.metrics.lddt import lddt
from protfold_peft.metrics.rmsd import rmsd
from protfold_peft.metrics.tm_score import TmScore, tm_score
from protfold_peft.structure import restypes_of
from protfold_peft.structure.residues import ATOM_INDEX

_CA = ATOM_INDEX["CA"]

# Pairs of a batch, and how much longer than its shortest reference the longest may be: padding is work for nothing.
_MAX_PAIRS = 128
_MAX_RATIO = 1.25
# Padded residues of a batch; the library splits its own work further.
_MAX_RESIDUES = 32_768


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one pair; NaN where undefined.

    Attributes:
        tm_score: 0..1.
        gdt_ts: 0..1.
        gdt_ha: 0..1.
        lddt_ca: 0..1.
        lddt: All heavy atoms, the better of symmetric names, 0..1.
        rmsd_ca: Angstrom.
        rmsd_heavy: Angstrom.
        lddt_per_residue: `(n,)` CA lDDT of every residue of the reference, 0..1.
        distances: `(n,)` CA distances in angstrom at the superposition of the TM-score, NaN where one has no CA.
        lddt_stereo: As `lddt`, without atoms of impossible geometry; NaN where that was not asked for.
        geometry: Counts of what is odd about the model; empty where that was not asked for.
    """

    tm_score: float
    gdt_ts: float
    gdt_ha: float
    lddt_ca: float
    lddt: float
    rmsd_ca: float
    rmsd_heavy: float
    lddt_per_residue: np.ndarray
    distances: np.ndarray
    lddt_stereo: float = float("nan")
    geometry: dict[str, int] = field(default_factory=dict)


def score_all(
    pairs: Sequence[Matched],
    *,
    search: str,
    normalise: str | int,
    device: torch.device,
    stereochemistry: bool = False,
) -> list[Scores | Exception]:
    """Scores of every pair, in order; for one that cannot be scored, the exception that tells why.

    Args:
        pairs: Matched models and references.
        search: `tmscore` or `irls`.
        normalise: Length of the TM-score: `reference`, `model`, or a number of residues.
        device: Where to compute; in float64, on MPS (which has none) in float32.
        stereochemistry: Judge the models' geometry too.
    """
    asked = _Asked(search, normalise, device, stereochemistry)
    results: list[Scores | Exception] = [ProtfoldError("not scored")] * len(pairs)
    for places in _batches([len(pair) for pair in pairs]):
        batch = [pairs[place] for place in places]
        for place, result in zip(places, _score_or_tell(batch, asked), strict=True):
            results[place] = result
    return results


@dataclass(frozen=True)
class _Asked:
    search: str
    normalise: str | int
    device: torch.device
    stereochemistry: bool


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of pairs of similar length, longest first, so that too large a batch shows at once."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[batch[0]] if batch else 0
        full = len(batch) >= _MAX_PAIRS or (len(batch) + 1) * longest > _MAX_RESIDUES
        if batch and (full or longest > _MAX_RATIO * lengths[place]):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _score_or_tell(batch: Sequence[Matched], asked: _Asked) -> list[Scores | Exception]:
    """Scores of a batch; where it fails, of its pairs one by one, so that each error has its owner."""
    try:
        return list(_score(batch, asked))
    except (ProtfoldError, ValueError, RuntimeError, MemoryError) as error:
        if len(batch) == 1:
            return [error]
    return [result for pair in batch for result in _score_or_tell([pair], asked)]


def _score(batch: Sequence[Matched], asked: _Asked) -> list[Scores]:
    """All scores of a batch of pairs, padded to one length."""
    device = asked.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    n = max(len(pair) for pair in batch)

    def padded(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        out = torch.zeros((len(arrays), n, *arrays[0].shape[1:]), dtype=dtype)
        for row, array in enumerate(arrays):
            out[row, : len(array)] = torch.from_numpy(np.ascontiguousarray(array))
        return out.to(device)

    reference = padded([pair.reference_positions for pair in batch], dtype)
    reference_mask = padded([pair.reference_mask for pair in batch], torch.bool)
    model = padded([pair.model_positions for pair in batch], dtype)
    model_mask = padded([pair.model_mask for pair in batch], torch.bool)
    restypes = padded([restypes_of(pair.sequence).numpy() for pair in batch], torch.long)
    ca = (model[:, :, _CA], reference[:, :, _CA], reference_mask[:, :, _CA], model_mask[:, :, _CA])
    both = ca[2] & ca[3]

    tm, ts, ha = _superposed(batch, ca, asked.search, asked.normalise)
    local = lddt(*ca)
    full = lddt(model, reference, reference_mask, model_mask, restypes=restypes)
    rmsd_ca = rmsd(*ca).score
    rmsd_heavy = rmsd(model, reference, reference_mask, model_mask).score
    distances = torch.linalg.vector_norm(tm.superposition.apply(ca[0]) - ca[1], dim=-1).masked_fill(~both, torch.nan)
    columns = {
        "tm_score": tm.score,
        "gdt_ts": ts,
        "gdt_ha": ha,
        "lddt_ca": local.score,
        "lddt": full.score,
        "rmsd_ca": rmsd_ca,
        "rmsd_heavy": rmsd_heavy,
    }
    geometry = [geometry_of(pair, device) for pair in batch] if asked.stereochemistry else []
    if geometry:
        sound = model_mask & padded([each.sound for each in geometry], torch.bool)
        columns["lddt_stereo"] = lddt(model, reference, reference_mask, sound, restypes=restypes).score
    values = {name: column.cpu().tolist() for name, column in columns.items()}
    per_residue, distance = local.per_residue.double().cpu().numpy(), distances.double().cpu().numpy()
    return [
        Scores(
            **{name: column[row] for name, column in values.items()},
            lddt_per_residue=per_residue[row, : len(pair)],
            distances=distance[row, : len(pair)],
            geometry=geometry[row].counts if geometry else {},
        )
        for row, pair in enumerate(batch)
    ]


def _superposed(
    batch: Sequence[Matched],
    ca: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    search: str,
    normalise: str | int,
) -> tuple[TmScore, torch.Tensor, torch.Tensor]:
    """TM-score, GDT-TS and GDT-HA; one search where the TM-score is the plain one."""
    if search == "tmscore" and normalise == "reference":
        tm, (ts, ha) = tm_and_gdt(*ca)
        return tm, ts.score, ha.score
    lengths = {
        "reference": [pair.n_reference for pair in batch],
        # All of the model's residues, those beyond the reference too.
        "model": [pair.n_model for pair in batch],
    }.get(str(normalise), [int(normalise)] * len(batch) if isinstance(normalise, int) else [])
    by = torch.tensor(lengths, device=ca[0].device)
    tm = tm_score(*ca, search="irls" if search == "irls" else "tmscore", normalise=by)
    return tm, gdt_ts(*ca).score, gdt_ha(*ca).score
