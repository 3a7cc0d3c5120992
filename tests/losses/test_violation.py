"""Violations against DeepMind's values, finite differences, and cases with a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from built_chains import ALL_TWENTY, build_chain

from protfold_peft.losses import violation_loss, violations
from protfold_peft.losses.distance_bounds import distance_bounds
from protfold_peft.metrics.ideal_geometry import BACKBONE, restraints
from protfold_peft.structure.engh_huber import SIDE_CHAIN_GEOMETRY
from protfold_peft.structure.geometry import atom37_to_atom14, restypes_of
from protfold_peft.structure.residues import ATOM14_MASK, ATOM_TYPES, ONE_TO_THREE, RESTYPES

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
CB, SG = 4, 5


def placed(sequence: str, atoms: dict[tuple[int, int], tuple[float, float, float]]) -> tuple[torch.Tensor, ...]:
    """Positions, mask and residue types with only the atoms given, by residue and place of the 14."""
    positions = torch.zeros(1, len(sequence), 14, 3, dtype=torch.float64)
    mask = torch.zeros(1, len(sequence), 14, dtype=torch.bool)
    for place, xyz in atoms.items():
        positions[0, *place] = torch.tensor(xyz, dtype=torch.float64)
        mask[0, *place] = True
    return positions, mask, restypes_of(sequence)[None]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("whose", ["pred", "gt"])
def test_equals_deepmind(stored_losses, whose: str, dtype: torch.dtype) -> None:
    for stored in stored_losses("violation_loss_total"):
        restypes = torch.tensor(stored.arrays["in_aatype"])[None]
        index = torch.tensor(stored.arrays["in_residue_index"])[None]
        positions, mask = (
            atom37_to_atom14(stored(f"in_{whose}_atom37{end}", dtype), restypes) for end in ("", "_mask")
        )
        found = violations(positions, mask, restypes, index, like_alphafold_2_3=True)
        prefix = "metric_violations_" if whose == "pred" else "gtmetric_violations_"
        values = {
            "violation_loss_total" + ("" if whose == "pred" else "_of_gt"): found.loss,
            prefix + "extreme_ca_ca_distance": found.extreme_ca_ca,
            prefix + "between_residue_bond": found.bond_residues.double().mean(),
            prefix + "between_residue_clash": found.clash_residues.double().mean(),
            prefix + "within_residue": found.within_residues.double().mean(),
            prefix + "per_residue": found.residues.double().mean(),
        }
        if whose == "pred":
            values |= {
                "viol_between_residues_bonds_c_n_loss_mean": found.c_n,
                "viol_between_residues_angles_ca_c_n_loss_mean": found.ca_c_n,
                "viol_between_residues_angles_c_n_ca_loss_mean": found.c_n_ca,
                "viol_between_residues_clashes_mean_loss": found.clash_mean,
            }
            for key, atoms in (("clashes", found.clashes), ("within", found.within)):
                name = "between_residues_clashes" if key == "clashes" else "within_residues"
                expected = stored(f"out_viol_{name}_per_atom_loss_sum", dtype)
                torch.testing.assert_close(atoms, expected, rtol=1e-4, atol=1e-5)
        for key, value in values.items():
            assert value.item() == pytest.approx(stored.values[key], rel=TOLERANCE[dtype], abs=1e-12), (
                stored.name,
                key,
            )


def test_the_slips_of_alphafold_are_repeated_on_request_only() -> None:
    """An angle CA-C-N of 100 degrees lies within twelve of its own deviations, and outside as many of the bond's."""
    cosine, sine = math.cos(math.radians(100)), math.sin(math.radians(100))
    bent = placed("AA", {(0, 1): (1.525, 0, 0), (0, 2): (0, 0, 0), (1, 0): (1.329 * cosine, 1.329 * sine, 0)})
    assert violations(*bent).ca_c_n.item() == 0
    unit = math.sqrt(1 + 1e-6 / 1.525**2) * math.sqrt(1 + 1e-6 / 1.329**2)
    expected = math.sqrt((cosine / unit + 0.4473) ** 2 + 1e-6) - 12 * 0.014
    assert violations(*bent, like_alphafold_2_3=True).ca_c_n.item() == pytest.approx(expected, rel=1e-5)

    leucines = placed("LAL", {(0, SG): (0, 0, 0), (2, SG): (0, 1.5, 0)})
    assert violations(*leucines).clashes.sum().item() == pytest.approx(2 * (3.4 - 1.5 - 1.5), rel=1e-6)
    assert violations(*leucines, like_alphafold_2_3=True).clashes.sum().item() == 0
    cysteines = placed("CAC", {(0, SG): (0, 0, 0), (2, SG): (0, 1.5, 0)})
    assert violations(*cysteines).clashes.sum().item() == 0


@pytest.mark.parametrize(("sequence", "mean", "deviation"), [("GA", 1.329, 0.014), ("GP", 1.341, 0.016)])
def test_a_stretched_peptide_bond(sequence: str, mean: float, deviation: float) -> None:
    for excess in (-0.01, 0.25):
        length = mean + 12 * deviation + excess
        found = violations(*placed(sequence, {(0, 2): (0, 0, 0), (1, 0): (length, 0, 0)}))
        expected = math.sqrt((math.sqrt(length**2 + 1e-6) - mean) ** 2 + 1e-6) - 12 * deviation
        assert found.c_n.item() == pytest.approx(max(0, expected), rel=1e-5)
        assert found.loss.item() == found.c_n.item()
        assert found.bond_residues.tolist() == [[excess > 0] * 2]


def test_no_bond_across_a_gap() -> None:
    """The same atoms with numbers that leave a gap: no bond to stretch, and nearness is then a clash."""
    apart = placed("GA", {(0, 2): (0, 0, 0), (1, 0): (9.0, 0, 0)})
    assert violations(*apart).c_n.item() > 7
    assert violations(*apart, torch.tensor([[4, 9]])).loss.item() == 0
    near = placed("GA", {(0, 2): (0, 0, 0), (1, 0): (1.329, 0, 0)})
    assert violations(*near).loss.item() == 0
    overlap = 1.7 + 1.55 - 1.5 - 1.329
    found = violations(*near, torch.tensor([[4, 9]]))
    assert found.clash_mean.item() == pytest.approx(overlap, rel=1e-5)
    assert found.clashes[0, :, :3].flatten().tolist() == pytest.approx([0, 0, overlap, overlap, 0, 0], rel=1e-5)


def test_ideal_residues_have_nothing_wrong_within() -> None:
    """Every distance that bonds and angles fix; but proline, whose ring is closed at one chi1 only."""
    lower, upper = distance_bounds()
    residues = "".join(letter for letter in ALL_TWENTY if letter != "P")
    chain = build_chain(residues, 0)
    distance = (chain.atom14[0, :, :, None] - chain.atom14[0, :, None]).norm(dim=-1)
    bonded = upper[chain.restypes[0]].isfinite()
    assert bonded.sum() > 400
    assert (distance >= lower[chain.restypes[0]])[bonded].all()
    assert (distance <= upper[chain.restypes[0]])[bonded].all()


def test_a_stretched_bond_within_a_residue() -> None:
    """CA and CB of alanine, 2 A apart: counted from both ends and in both orders."""
    found = violations(*placed("A", {(0, 1): (0, 0, 0), (0, CB): (2.0, 0, 0)}))
    excess = 2.0 - (1.520 + 12 * 0.021)
    assert found.within[0, 0, [1, CB]].tolist() == pytest.approx([2 * excess] * 2, rel=1e-6)
    assert found.loss.item() == pytest.approx(2 * excess, rel=1e-6)
    assert found.residues.tolist() == [[True]]


def test_the_table_agrees_with_ideal_residues() -> None:
    """Means of Engh & Huber beside the ideal coordinates, an independent source: the same bonds and angles, near each
    other. Both tables name every bond, and every angle between bonds."""
    for table, size, tolerance in zip(restraints(), (2, 3), (0.05, 5.0), strict=True):
        for row, letter in enumerate(RESTYPES[:20]):
            residue = ONE_TO_THREE[letter]
            ideal = {
                _unordered([ATOM_TYPES[place] for place in atoms]): float(mean)
                for atoms, mean, exists in zip(table.atoms[row], table.mean[row], table.exists[row], strict=True)
                if exists
            }
            tabulated = {_unordered(atoms): mean for atoms, (mean, _) in SIDE_CHAIN_GEOMETRY[residue].items()}
            tabulated = {atoms: mean for atoms, mean in tabulated.items() if len(atoms) == size}
            backbone = {_unordered(atoms.split()) for atoms in BACKBONE if "+" not in atoms}
            assert set(tabulated) == set(ideal) - backbone, residue
            for atoms, mean in tabulated.items():
                assert mean == pytest.approx(ideal[atoms], abs=tolerance), (residue, atoms)
            for _, deviation in SIDE_CHAIN_GEOMETRY[residue].values():
                assert 0.01 <= deviation <= 4


def _unordered(atoms: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """An angle read from either end is the same."""
    return min(tuple(atoms), tuple(reversed(atoms)))


def test_bounds_of_an_angle_are_those_of_the_third_side() -> None:
    """Of atoms bonded to the same one, by numbers: nudge each length and the angle by its deviation."""
    lower, upper = distance_bounds()
    alanine = RESTYPES.index("A")
    side = (lower + upper)[alanine, 0, CB].item() / 2
    spread = (upper - lower)[alanine, 0, CB].item() / 24

    def third(a: float, b: float, degrees: float) -> float:
        return math.dist((a, 0), (b * math.cos(math.radians(degrees)), b * math.sin(math.radians(degrees))))

    mean = (1.459, 1.520, 110.1)
    assert side == pytest.approx(third(*mean), rel=1e-9)
    nudges = [(0.020, 0, 0), (0, 0.021, 0), (0, 0, 1.4)]
    step = 1e-5
    changes = [(third(*(m + step * d for m, d in zip(mean, nudge, strict=True))) - side) / step for nudge in nudges]
    assert spread == pytest.approx(math.hypot(*changes), rel=1e-4)


def test_bounds_first_asked_for_in_inference_mode_serve_training() -> None:
    distance_bounds.cache_clear()
    with torch.inference_mode():
        assert not any(bound.is_inference() for bound in distance_bounds())


def test_padding_and_missing_atoms_take_no_part() -> None:
    chain = build_chain(ALL_TWENTY, 1)
    mask = torch.tensor(ATOM14_MASK)[chain.restypes]
    mask[0, 4] = False
    mask[0, 7, 5:] = False
    value = violation_loss(chain.atom14, mask, chain.restypes)
    assert value.item() > 0.1
    long = chain.padded(3)
    long_mask = torch.cat([mask, torch.zeros(1, 3, 14, dtype=torch.bool)], dim=1)
    points = long.atom14.clone().requires_grad_()
    padded = violation_loss(points, long_mask, long.restypes)
    torch.testing.assert_close(padded, value)
    padded.backward()
    assert (points.grad[~long_mask] == 0).all()
    moved = chain.atom14.masked_fill(~mask[..., None], 0.5)
    torch.testing.assert_close(violation_loss(moved, mask, chain.restypes), value)


def test_samples_are_apart() -> None:
    chains = [build_chain("ACDKW", seed) for seed in (2, 3)]
    both = [torch.cat(parts) for parts in zip(*((c.atom14, c.restypes) for c in chains), strict=True)]
    mask = torch.tensor(ATOM14_MASK)[both[1]]
    together = violation_loss(both[0], mask, both[1])
    alone = [violation_loss(c.atom14, mask[:1], c.restypes) for c in chains]
    torch.testing.assert_close(together, torch.cat(alone))
    assert alone[0].item() != alone[1].item()


@pytest.mark.parametrize("like_alphafold_2_3", [True, False])
def test_gradient_equals_finite_differences(like_alphafold_2_3: bool) -> None:
    chain = build_chain("ADPG", 4)
    mask = torch.tensor(ATOM14_MASK)[chain.restypes]
    mask[0, 3, 3] = False
    noise = torch.randn(1, 4, 14, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    points = (chain.atom14 + noise).requires_grad_()

    def value(x: torch.Tensor) -> torch.Tensor:
        return violation_loss(x, mask, chain.restypes, like_alphafold_2_3=like_alphafold_2_3)

    found = violations(points, mask, chain.restypes)
    for term in (found.c_n, found.ca_c_n + found.c_n_ca, found.clashes.sum(), found.within.sum()):
        assert term.item() > 0, "a term that is 0 tests nothing"
    assert torch.autograd.gradcheck(value, (points,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sequence", ["A", "X", "AXW", "GG"])
@pytest.mark.parametrize("known", [True, False])
def test_finite_where_atoms_coincide(dtype: torch.dtype, sequence: str, known: bool) -> None:
    points = torch.zeros(1, len(sequence), 14, 3, dtype=dtype, requires_grad=True)
    value = violation_loss(points, torch.full((1, len(sequence), 14), known), restypes_of(sequence)[None])
    value.sum().backward()
    assert value.isfinite().all()
    assert points.grad.isfinite().all()
    if not known or sequence == "X":
        assert value.item() == 0
    else:
        assert value.item() > 1
