"""Frames, torsions and rebuilt atoms on real chains, against Biopython, transformers and known motions."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio.PDB.internal_coords import IC_Chain
from Bio.PDB.Polypeptide import PPBuilder
from Bio.PDB.Structure import Structure as BioStructure
from Bio.PDB.vectors import calc_dihedral
from torch import Tensor
from transformers.models.esm.openfold_utils import feats, residue_constants
from transformers.models.esm.openfold_utils import rigid_utils as openfold

from protfold_peft.structure import (
    Chain,
    Rigid,
    Structure,
    atom14_from_groups,
    atom14_from_torsions,
    atom14_to_atom37,
    atom37_to_atom14,
    backbone_frames,
    backbone_from_frames,
    dihedral,
    groups_from_atoms,
    peptide_bonds,
    read_structure,
    residues,
    restypes_of,
    rigid_groups,
    swap_ambiguous,
    to_biopython,
    torsions,
    virtual_cb,
)


def tensors(chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, mask and residue types of a chain."""
    return torch.tensor(chain.atom_positions), torch.tensor(chain.atom_mask), restypes_of(chain.sequence)


@pytest.fixture
def chain(example: Path) -> Chain:
    return read_structure(example).chains[0]


@pytest.fixture(scope="module")
def bromodomain() -> Chain:
    return read_structure(Path(__file__).resolve().parents[2] / "structures" / "4CUP_A.cif").chains[0]


def random_motion() -> Rigid:
    return Rigid.from_three_points(*torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))


def degrees(sin_cos: Tensor) -> np.ndarray:
    return torch.rad2deg(torch.atan2(sin_cos[..., 0], sin_cos[..., 1])).numpy()


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs((a - b + 180) % 360 - 180)


def test_phi_and_psi_are_biopythons(chain: Chain) -> None:
    angles = torsions(*tensors(chain))
    ours = degrees(angles.sin_cos)
    mask = angles.mask.numpy()
    row, off = 0, []
    for peptide in PPBuilder().build_peptides(to_biopython_standard(chain), aa_only=False):
        for residue, (phi, psi) in zip(peptide, peptide.get_phi_psi_list(), strict=True):
            assert (phi is not None) == mask[row, 1]
            if phi is not None:
                assert angle_between(ours[row, 1], math.degrees(phi)) < 1e-3
            if mask[row, 2]:
                on_oxygen = calc_dihedral(*(residue[name].get_vector() for name in ("N", "CA", "C", "O")))
                assert angle_between(ours[row, 2], math.degrees(on_oxygen) + 180) < 1e-3
            if psi is not None:
                off.append(angle_between(ours[row, 2], math.degrees(psi)))
            row += 1
    assert row == len(chain)
    # Ours is measured on O, which lies opposite the next N but for the planarity of the peptide bond.
    assert np.median(off) < 8


def to_biopython_standard(chain: Chain) -> BioStructure:
    """As Bio.PDB has it, modified residues under their parents' names so that it knows their angles."""
    names = tuple(residues.ONE_TO_THREE[letter] for letter in chain.sequence)
    return to_biopython(Structure("x", (replace(chain, residue_names=names),)))


def test_chi_angles_are_biopythons(chain: Chain) -> None:
    bio = to_biopython_standard(chain)[0][chain.id]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bio.atom_to_internal_coordinates()
    assert isinstance(bio.internal_coord, IC_Chain)
    angles = torsions(*tensors(chain))
    ours, mask = degrees(angles.sin_cos), angles.mask.numpy()
    compared = 0
    for row, residue in enumerate(bio):
        for chi in range(4):
            theirs = residue.internal_coord.get_angle(f"chi{chi + 1}") if residue.internal_coord else None
            if mask[row, 3 + chi] and theirs is not None:
                assert angle_between(ours[row, 3 + chi], theirs) < 1e-3
                compared += 1
    assert compared > 0.9 * mask[:, 3:].sum()


def test_dihedral_sign_and_degenerate() -> None:
    """Looking along p2-p3, p4 is turned clockwise by the angle (IUPAC)."""
    angle = torch.tensor(0.7, dtype=torch.float64)
    p1, p2, p3 = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    p4 = torch.stack([torch.tensor(1.0, dtype=torch.float64), angle.cos(), angle.sin()])
    torch.testing.assert_close(dihedral(p1, p2, p3, p4), torch.stack([angle.sin(), angle.cos()]))
    line = torch.zeros(4, 3, requires_grad=True)
    value = dihedral(*line)
    value.sum().backward()
    assert value.tolist() == [0.0, 1.0]
    assert line.grad is not None
    assert torch.isfinite(line.grad).all()


def test_rebuilding_from_frames_and_torsions(chain: Chain, example: Path) -> None:
    """Ideal bond lengths and angles on real torsions: within a few tenths of an angstrom of the real atoms."""
    chain_is_sharp = example.stem in ("1A8O_A", "4CUP_A")
    positions, mask, restypes = tensors(chain)
    frames, present = backbone_frames(positions, mask)
    assert present.all()
    rebuilt, has_atom = atom14_from_torsions(frames, torsions(positions, mask, restypes).sin_cos, restypes)
    both = has_atom & atom37_to_atom14(mask, restypes)
    off = (rebuilt - atom37_to_atom14(positions, restypes)).norm(dim=-1)[both]
    # Chains refined at high resolution have nearly ideal geometry, NMR models of the nineties less so.
    assert off.square().mean().sqrt() < (0.15 if chain_is_sharp else 0.4)
    assert off.median() < (0.05 if chain_is_sharp else 0.1)
    backbone = (backbone_from_frames(frames, restypes) - positions[:, :3]).norm(dim=-1)
    assert backbone.square().mean().sqrt() < 0.1


def test_virtual_cb(chain: Chain) -> None:
    positions, mask, _ = tensors(chain)
    has_cb = mask[:, :4].all(-1)
    off = (virtual_cb(*positions[:, :3].unbind(1)) - positions[:, 3]).norm(dim=-1)[has_cb]
    assert off.mean() < 0.16
    assert off.max() < 0.35


def test_virtual_cb_is_esmfolds_distogram() -> None:
    """The model's own distogram is binned on these CB; equal bins mean the same constants."""
    from transformers.models.esm.modeling_esmfold import EsmFoldingTrunk

    coordinates = torch.randn(1, 6, 3, 3) * 2 + torch.arange(6)[None, :, None, None] * 2.5
    n, ca, c = coordinates.unbind(2)
    cb = virtual_cb(n, ca, c)
    distances = torch.cdist(cb, cb)
    boundaries = torch.linspace(3.375, 21.375, 14)
    bins = (distances[..., None] ** 2 > boundaries**2).sum(-1)
    theirs = EsmFoldingTrunk.distogram(coordinates, 3.375, 21.375, 15)
    assert torch.equal(bins, theirs)


def test_all_atoms_are_transformers() -> None:
    """Algorithm 24 on random frames and angles of all twenty types."""
    generator = torch.Generator().manual_seed(0)
    restypes = torch.arange(20).repeat(2, 1)
    sin_cos = torch.nn.functional.normalize(torch.randn(2, 20, 7, 2, generator=generator), dim=-1)
    backbone = Rigid.from_three_points(*torch.randn(3, 2, 20, 3, generator=generator))
    positions, mask = atom14_from_torsions(backbone, sin_cos, restypes)

    defaults = torch.tensor(residue_constants.restype_rigid_group_default_frame)
    theirs = openfold.Rigid(openfold.Rotation(rot_mats=backbone.rotation), backbone.translation)
    frames = feats.torsion_angles_to_frames(theirs, sin_cos, restypes, defaults)
    expected = feats.frames_and_literature_positions_to_atom14_pos(
        frames,
        restypes,
        defaults,
        torch.tensor(residue_constants.restype_atom14_to_rigid_group),
        torch.tensor(residue_constants.restype_atom14_mask),
        torch.tensor(residue_constants.restype_atom14_rigid_group_positions),
    )
    torch.testing.assert_close(positions, expected, atol=2e-6, rtol=0)
    assert torch.equal(mask, torch.tensor(residue_constants.restype_atom14_mask)[restypes].bool())


def test_groups_are_measured_as_they_are_built(bromodomain: Chain) -> None:
    """Frames read off rebuilt atoms are those the atoms were built from, and torsions come back."""
    positions, mask, restypes = tensors(bromodomain)
    frames, _ = backbone_frames(positions, mask)
    angles = torsions(positions, mask, restypes)
    groups = rigid_groups(frames, angles.sin_cos, restypes)
    rebuilt = atom14_to_atom37(atom14_from_groups(groups, restypes), restypes)
    rebuilt_mask = torch.tensor(residues.ATOM37_MASK)[restypes]
    measured, present = groups_from_atoms(rebuilt, rebuilt_mask, restypes)
    torch.testing.assert_close(measured.rotation[present], groups.rotation[present], atol=1e-6, rtol=0)
    torch.testing.assert_close(measured.translation[present], groups.translation[present], atol=1e-6, rtol=0)
    again = torsions(rebuilt, rebuilt_mask, restypes)
    side = angles.mask[:, 2:] & again.mask[:, 2:]
    torch.testing.assert_close(again.sin_cos[:, 2:][side], angles.sin_cos[:, 2:][side], atol=1e-6, rtol=0)
    expected = torch.tensor(residues.GROUP_MASK)[restypes]
    assert torch.equal(present, expected)


def test_missing_atoms_mask_what_needs_them(bromodomain: Chain) -> None:
    positions, mask, restypes = tensors(bromodomain)
    row = bromodomain.sequence.index("K", 5)
    mask = mask.clone()
    mask[row, residues.ATOM_INDEX["CD"]] = False
    angles = torsions(positions, mask, restypes)
    assert angles.mask[row].tolist() == [True, True, True, True, False, False, False]
    assert angles.sin_cos[row, 4:].tolist() == [[0.0, 1.0]] * 3
    _, groups = groups_from_atoms(positions, mask, restypes)
    assert groups[row].tolist() == [True, False, False, True, True, False, False, False]
    mask[row, 2] = False
    _, frames = backbone_frames(positions, mask)
    assert frames.sum() == len(bromodomain) - 1
    assert not frames[row]


def test_a_broken_bond_has_no_omega_and_phi(bromodomain: Chain) -> None:
    positions, mask, restypes = (x[torch.arange(len(bromodomain)) != 30] for x in tensors(bromodomain))
    angles = torsions(positions, mask, restypes)
    assert torch.nonzero(~angles.mask[:, 0]).flatten().tolist() == [0, 30]
    assert torch.nonzero(~angles.mask[:, 1]).flatten().tolist() == [0, 30]
    assert torch.nonzero(~peptide_bonds(positions, mask)).flatten().tolist() == [0, 30]


def test_omega_is_trans(bromodomain: Chain) -> None:
    angles = torsions(*tensors(bromodomain))
    off = angle_between(degrees(angles.sin_cos[1:, 0]), np.full(len(bromodomain) - 1, 180.0))
    assert np.median(off) < 5


def test_the_other_naming_of_symmetric_atoms(bromodomain: Chain) -> None:
    """Renaming OD1/OD2 and the like turns their chi angle by half a turn, to within the planarity of the group."""
    positions, mask, restypes = tensors(bromodomain)
    angles = torsions(positions, mask, restypes)
    renamed = atom14_to_atom37(swap_ambiguous(atom37_to_atom14(positions, restypes), restypes), restypes)
    other = torsions(renamed, mask, restypes)
    periodic = torch.tensor(residues.CHI_PI_PERIODIC)[restypes] & angles.mask[:, 3:]
    assert periodic.any()
    off = angle_between(degrees(angles.alternative[:, 3:][periodic]), degrees(other.sin_cos[:, 3:][periodic]))
    assert off.max() < 6
    torch.testing.assert_close(angles.alternative[:, 3:][~periodic], other.sin_cos[:, 3:][~periodic])
    swapped_twice = swap_ambiguous(swap_ambiguous(positions[:, :14], restypes), restypes)
    torch.testing.assert_close(swapped_twice, positions[:, :14])


def test_torsions_ignore_motions_and_mirror_with_the_chain(bromodomain: Chain) -> None:
    positions, mask, restypes = tensors(bromodomain)
    angles = torsions(positions, mask, restypes)
    moved = torsions(random_motion().apply(positions), mask, restypes)
    torch.testing.assert_close(moved.sin_cos, angles.sin_cos)
    mirrored = torsions(positions * torch.tensor([1.0, 1.0, -1.0]), mask, restypes)
    expected = angles.sin_cos * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(mirrored.sin_cos[angles.mask], expected[angles.mask])


def test_frames_and_atoms_move_with_the_chain(bromodomain: Chain) -> None:
    positions, mask, restypes = tensors(bromodomain)
    motion = random_motion()
    frames, _ = backbone_frames(positions, mask)
    moved, _ = backbone_frames(motion.apply(positions), mask)
    torch.testing.assert_close(moved.rotation, motion.compose(frames).rotation)
    angles = torsions(positions, mask, restypes).sin_cos
    one, has = atom14_from_torsions(moved, angles, restypes)
    other, _ = atom14_from_torsions(frames, angles, restypes)
    torch.testing.assert_close(one[has], motion.apply(other)[has])


def test_layouts_there_and_back(bromodomain: Chain) -> None:
    positions, mask, restypes = tensors(bromodomain)
    there = atom37_to_atom14(positions, restypes)
    back = atom14_to_atom37(there, restypes)
    kept = torch.tensor(residues.ATOM37_MASK)[restypes]
    torch.testing.assert_close(back, positions * kept[..., None])
    assert torch.equal(atom14_to_atom37(atom37_to_atom14(mask, restypes), restypes), mask & kept)
    batched = atom14_to_atom37(there[None].expand(2, -1, -1, -1), restypes[None].expand(2, -1))
    torch.testing.assert_close(batched[1], back)
    unknown = torch.full((3,), residues.UNKNOWN)
    assert not atom14_to_atom37(torch.ones(3, 14, 3), unknown).any()


def test_unknown_residues_have_a_backbone_and_nothing_else() -> None:
    unknown = torch.full((2,), residues.UNKNOWN)
    frames = Rigid.identity((2,), dtype=torch.float64)
    torch.testing.assert_close(backbone_from_frames(frames, unknown), backbone_from_frames(frames, restypes_of("AA")))
    torch.testing.assert_close(backbone_from_frames(frames), backbone_from_frames(frames, restypes_of("AA")))
    _, mask = atom14_from_torsions(frames, torch.zeros(2, 7, 2, dtype=torch.float64), unknown)
    assert not mask.any()


def test_gradients() -> None:
    """Through atoms -> frames and torsions -> atoms, for a residue of every type with chi angles."""
    restypes = restypes_of("RKW")
    generator = torch.Generator().manual_seed(1)
    start, mask = atom14_from_torsions(
        Rigid.from_three_points(*torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)),
        torch.nn.functional.normalize(torch.randn(3, 7, 2, generator=generator, dtype=torch.float64), dim=-1),
        restypes,
    )
    positions = atom14_to_atom37(start, restypes).requires_grad_()
    mask37 = atom14_to_atom37(mask, restypes)

    def f(positions: Tensor) -> tuple[Tensor, Tensor]:
        frames, _ = backbone_frames(positions)
        angles = torsions(positions, mask37, restypes).sin_cos
        rebuilt, _ = atom14_from_torsions(frames, angles, restypes)
        return rebuilt, groups_from_atoms(positions, mask37, restypes)[0].rotation

    assert torch.autograd.gradcheck(f, (positions,), fast_mode=True)


def test_absent_atoms_give_no_nan_gradient() -> None:
    """A chain with only CA, everything else 0: masked angles must not poison a loss."""
    positions = torch.zeros(4, 37, 3, requires_grad=True)
    mask = torch.zeros(4, 37, dtype=torch.bool)
    mask[:, 1] = True
    restypes = restypes_of("KRWD")
    frames, _ = backbone_frames(positions, mask)
    angles = torsions(positions, mask, restypes)
    atoms, _ = atom14_from_torsions(frames, angles.sin_cos, restypes)
    (atoms.sum() + angles.sin_cos.sum() + groups_from_atoms(positions, mask, restypes)[0].rotation.sum()).backward()
    assert positions.grad is not None
    assert torch.isfinite(positions.grad).all()


def test_constants_first_used_in_inference_mode_serve_training() -> None:
    from protfold_peft.structure import geometry

    geometry._constant.cache_clear()
    with torch.inference_mode():
        atom14_from_torsions(Rigid.identity((1,)), torch.ones(1, 7, 2), restypes_of("K"))
    sin_cos = torch.ones(1, 7, 2, requires_grad=True)
    atoms, _ = atom14_from_torsions(Rigid.identity((1,)), sin_cos, restypes_of("K"))
    atoms.sum().backward()
    assert sin_cos.grad is not None


def test_half_precision_keeps_its_dtype() -> None:
    frames = Rigid.identity((1,), dtype=torch.bfloat16)
    atoms, _ = atom14_from_torsions(frames, torch.ones(1, 7, 2, dtype=torch.bfloat16), restypes_of("K"))
    assert atoms.dtype == torch.bfloat16
