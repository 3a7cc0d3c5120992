"""Clashes and geometry: OpenStructure's counts, ideal residues, single defects made on purpose, real structures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scored_pairs import random_rotation, stored_pairs
from torch import Tensor

from protfold_peft.metrics import backbone_geometry, clashes, sound_atoms
from protfold_peft.metrics.ideal_geometry import angle, restraints
from protfold_peft.structure import read_structure
from protfold_peft.structure.geometry import restypes_of
from protfold_peft.structure.residues import ATOM_INDEX, RESTYPES

N, CA, C, CB, O = 0, 1, 2, 3, 4


def example(structures: Path, name: str = "1A8O_A.pdb") -> tuple[Tensor, Tensor, Tensor]:
    """`(1, n, 37, 3)`, `(1, n, 37)`, `(1, n)` of a real chain, resolved well."""
    chain = read_structure(structures / name).chains[0]
    return (
        torch.tensor(chain.atom_positions)[None],
        torch.tensor(chain.atom_mask)[None],
        restypes_of(chain.sequence)[None],
    )


def test_openstructures_counts(test_data: Path) -> None:
    """Bonds measured, clashes, and how many residues are touched; its angles are one more than there are."""
    bonds, angles = restraints()
    for pair in stored_pairs(test_data):
        expected = pair.expected["stereo_openstructure"]
        assert clashes(pair.model, pair.model_mask).count.item() == expected["clashes"], pair.name
        if pair.model_length != int(pair.model_mask.any(-1).sum()):
            continue  # it counts residues that have no counterpart in the reference too
        for table, total in ((bonds, expected["bonds_outside_of"][1]), (angles, expected["angles_outside_of"][1] - 1)):
            atoms = table.atoms[pair.restypes[0]]
            there = pair.model_mask[0].gather(1, atoms.flatten(1)).view(atoms.shape).all(-1)
            assert (there & table.exists[pair.restypes[0]]).sum().item() == total, pair.name


def test_tables_have_every_bond_once() -> None:
    bonds, angles = restraints()
    rings = {"P": 1, "H": 1, "F": 1, "Y": 1, "W": 2}
    atoms = dict(zip("ARNDCQEGHILKMFPSTWYV", (5, 11, 8, 8, 6, 9, 9, 4, 10, 8, 8, 9, 8, 11, 7, 6, 7, 14, 12, 7)))
    for row, letter in enumerate(RESTYPES[:20]):
        assert bonds.exists[row].sum().item() == atoms[letter] - 1 + rings.get(letter, 0), letter
        degree = torch.bincount(bonds.atoms[row][bonds.exists[row]].flatten(), minlength=37)
        assert angles.exists[row].sum().item() == (degree * (degree - 1) // 2).sum().item(), letter
    assert ((bonds.mean[bonds.exists] > 1.2) & (bonds.mean[bonds.exists] < 1.85)).all()
    assert ((angles.mean[angles.exists] > 100) & (angles.mean[angles.exists] < 140)).all()


def test_angle_in_degrees() -> None:
    x, y, o = torch.eye(3).double()[0], torch.eye(3).double()[1], torch.zeros(3).double()
    assert angle(x, o, y).item() == pytest.approx(90)
    assert angle(x, o, -x).item() == pytest.approx(180)
    assert angle(x, o, x + 1e-9 * y).item() == pytest.approx(math.degrees(1e-9))


def test_a_real_structure_is_sound(structures: Path) -> None:
    positions, mask, restypes = example(structures)
    geometry = backbone_geometry(positions, mask, restypes)
    n = positions.shape[1]
    assert (geometry.bonds.item(), geometry.angles.item()) == (3 * n + n - 1, 2 * n + 3 * (n - 1))
    assert geometry.peptides.item() == n - 1
    for count in ("bond_outliers", "twisted", "breaks", "mirrored", "cis_not_proline"):
        assert getattr(geometry, count).item() == 0, count
    assert geometry.angle_outliers.item() <= n // 20
    assert torch.equal(sound_atoms(positions, mask, restypes), mask)
    assert clashes(positions, mask).count.item() == 0


def test_a_mirror_image_is_all_mirrored(structures: Path) -> None:
    positions, mask, restypes = example(structures)
    with_cb = mask[..., CB].sum().item()
    geometry = backbone_geometry(positions * torch.tensor([1.0, 1, -1]), mask, restypes)
    assert geometry.mirrored.item() == with_cb
    assert geometry.bond_outliers.item() == 0


def test_single_defects_are_each_counted(structures: Path) -> None:
    positions, mask, restypes = example(structures)
    plain = backbone_geometry(positions, mask, restypes)

    def changed(change) -> dict[str, int]:
        spoilt = positions.clone()
        change(spoilt[0])
        geometry = backbone_geometry(spoilt, mask, restypes)
        return {
            name: getattr(geometry, name).item() - getattr(plain, name).item()
            for name in geometry.__dataclass_fields__
            if getattr(geometry, name).item() != getattr(plain, name).item()
        }

    def longer_carbonyl(x: Tensor) -> None:
        x[10, O] += 0.2 * (x[10, O] - x[10, C]) / 1.23

    def pulled_apart(x: Tensor) -> None:
        x[30:] += 20.0

    def flipped(x: Tensor) -> None:
        # Everything after the C of residue 20 turned about C-N by 180 degrees: trans to cis.
        axis = (x[21, N] - x[20, C]) / (x[21, N] - x[20, C]).norm()
        moving = x[21:] - x[21, N]
        x[21:] = x[21, N] + 2 * (moving @ axis)[..., None] * axis - moving

    assert changed(longer_carbonyl) == {"bond_outliers": 1}
    apart = changed(pulled_apart)
    assert apart.pop("breaks") == 1
    assert apart.pop("peptides") == -1
    assert (apart.pop("bonds"), apart.pop("angles")) == (-1, -3)
    assert set(apart) <= {"angle_outliers"}
    cis = changed(flipped)
    assert cis.pop("cis") == 1
    assert set(cis) <= {"cis_not_proline", "angle_outliers"}


def test_numbering_tells_neighbours(structures: Path) -> None:
    positions, mask, restypes = example(structures)
    n = positions.shape[1]
    index = torch.arange(n)[None] + 5 * (torch.arange(n)[None] >= 12)
    kept = torch.ones(n, dtype=torch.bool)
    kept[20] = False
    assert backbone_geometry(positions, mask, restypes, index).peptides.item() == n - 2
    cut = [value[:, kept] for value in (positions, mask, restypes)]
    assert backbone_geometry(*cut, torch.arange(n)[None, kept]).breaks.item() == 0
    assert backbone_geometry(*cut).breaks.item() == 1


def test_clashes_by_hand() -> None:
    """Limits: two carbons 1.9, C and O 1.72, N and O 1.57 A; disulphides and peptide bonds are none."""

    def count(first: str, second: str, distance: float, rows: tuple[int, int] = (0, 2)) -> int:
        positions, mask = torch.zeros(1, 3, 37, 3), torch.zeros(1, 3, 37)
        positions[0, rows[1], ATOM_INDEX[second], 0] = distance
        mask[0, rows[0], ATOM_INDEX[first]] = mask[0, rows[1], ATOM_INDEX[second]] = 1
        result = clashes(positions, mask)
        assert result.atoms.sum().item() == 2 * result.count.item()
        return int(result.count.item())

    for first, second, limit in (("CA", "CB", 1.9), ("CA", "O", 1.72), ("N", "O", 1.57), ("SG", "CB", 2.0)):
        assert count(first, second, limit - 0.01) == 1
        assert count(first, second, limit + 0.01) == 0
    assert count("SG", "SG", 2.03) == 0
    assert count("SG", "SG", 1.0) == 1
    assert count("C", "N", 1.33, rows=(0, 1)) == 0
    assert count("N", "C", 1.33, rows=(0, 1)) == 1
    assert count("C", "N", 1.33, rows=(0, 2)) == 1


def test_unsound_side_chains_and_residues_are_left_out(structures: Path) -> None:
    positions, mask, restypes = example(structures)
    row = int((restypes[0] == RESTYPES.index("L")).nonzero()[0])
    side_chain = positions.clone()
    side_chain[0, row, ATOM_INDEX["CD1"]] += 0.6
    left = sound_atoms(side_chain, mask, restypes)
    expected = mask.clone()
    expected[0, row, [ATOM_INDEX[name] for name in ("CB", "CG", "CD1", "CD2")]] = False
    assert torch.equal(left, expected)
    backbone = positions.clone()
    backbone[0, row, C] += 1.0
    left = sound_atoms(backbone, mask, restypes)
    assert not left[0, row].any()


def test_motion_padding_and_batches_change_nothing(test_data: Path) -> None:
    pair = next(pair for pair in stored_pairs(test_data) if pair.expected["stereo_openstructure"]["clashes"])
    turn = torch.tensor(random_rotation(np.random.default_rng(0)))
    pad = [torch.full((1, 5, 37, 3), math.nan).double(), torch.zeros(1, 5, 37, dtype=torch.bool)]
    plain = [pair.model, pair.model_mask, pair.restypes]
    moved = torch.where(pair.model_mask[..., None], pair.model, 0.0) @ turn.mT + 7
    wide = [
        torch.cat([torch.cat([pair.model, moved]), pad[0].expand(2, -1, -1, -1)], 1),
        torch.cat([pair.model_mask.expand(2, -1, -1), pad[1].expand(2, -1, -1)], 1),
        torch.cat([pair.restypes.expand(2, -1), torch.zeros(2, 5, dtype=torch.int64)], 1),
    ]
    assert clashes(*wide[:2]).count.tolist() == [clashes(*plain[:2]).count.item()] * 2
    geometry, alone = backbone_geometry(*wide), backbone_geometry(*plain)
    for name in geometry.__dataclass_fields__:
        assert getattr(geometry, name).tolist() == [getattr(alone, name).item()] * 2, name
    assert torch.equal(sound_atoms(*wide)[:, :-5], sound_atoms(*plain).expand(2, -1, -1))


def test_bad_input_is_refused(structures: Path) -> None:
    positions, mask, restypes = example(structures)
    spoilt = positions.clone()
    spoilt[0, 4, CA] = math.nan
    for check in (lambda x: clashes(x, mask), lambda x: backbone_geometry(x, mask, restypes)):
        with pytest.raises(ValueError, match="sample 0, residue 4"):
            check(spoilt)
    with pytest.raises(ValueError, match="37 atoms"):
        clashes(positions[:, :, :4], mask[:, :, :4])
    with pytest.raises(ValueError, match="types"):
        sound_atoms(positions, mask, restypes[:, 1:])
    with pytest.raises(ValueError, match="residue_index"):
        backbone_geometry(positions, mask, restypes, restypes[:, 1:])
