"""Structure files built line by line, and what it means for two structures to be the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from protfold_peft.structure import Structure

# N, CA, C, O, CB of an ideal residue; residue i is shifted by 3.8 angstrom along x and joined to the next.
_BACKBONE = {
    "N": (0.0, 0.0, 0.0),
    "CA": (1.2, 0.8, 0.1),
    "C": (2.5, 0.1, 0.2),
    "O": (2.6, -1.1, 0.3),
    "CB": (1.1, 1.7, 1.3),
}


def atom_line(
    name: str = "CA",
    residue: str = "ALA",
    chain: str = "A",
    number: int | str = 1,
    xyz: Sequence[float] | str = (1.0, 2.0, 3.0),
    *,
    record: str = "ATOM",
    altloc: str = " ",
    icode: str = " ",
    occupancy: float | str = 1.0,
    b: float | str = 10.0,
    serial: int | str = 1,
    segid: str = "",
    element: str | None = None,
) -> str:
    """One ATOM or HETATM line; text arguments go into their columns as they are."""
    coordinates = xyz if isinstance(xyz, str) else "".join(f"{value:8.3f}" for value in xyz)
    occupancy = occupancy if isinstance(occupancy, str) else f"{occupancy:6.2f}"
    b = b if isinstance(b, str) else f"{b:6.2f}"
    padded = f"{name:<4}" if len(name) == 4 else f" {name:<3}"
    return (
        f"{record:<6}{serial:>5} {padded}{altloc}{residue:>3}{chain:>2}{number:>4}{icode}   "
        f"{coordinates}{occupancy:<6}{b:<6}      {segid:<4}{element or name[0]:>2}"
    )


def residue_lines(
    residue: str = "ALA",
    chain: str = "A",
    number: int | str = 1,
    *,
    at: float | None = None,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    atoms: Iterable[str] = ("N", "CA", "C", "O", "CB"),
    **columns: object,
) -> list[str]:
    """Backbone and CB of one residue; `at` is its place along the chain, by default its number."""
    place = float(number if at is None else at)  # type: ignore[arg-type]
    offset = np.array([3.8 * place, 0.0, 0.0]) + np.array(shift)
    return [
        atom_line(name, residue, chain, number, np.array(_BACKBONE[name]) + offset, **columns)  # type: ignore[arg-type]
        for name in atoms
    ]


def chain_lines(sequence: Sequence[str], chain: str = "A", start: int = 1, **columns: object) -> list[str]:
    """Residues by three-letter names, bonded one to the next."""
    return [
        line
        for i, name in enumerate(sequence)
        for line in residue_lines(name, chain, start + i, **columns)  # type: ignore[arg-type]
    ]


def assert_same(one: Structure, other: Structure, *, tolerance: float = 5.1e-4, full: bool = True) -> None:
    """The same chains, residues and atoms, coordinates within the rounding of a file."""
    assert [chain.id for chain in one.chains] == [chain.id for chain in other.chains]
    for a, b in zip(one.chains, other.chains, strict=True):
        assert a.sequence == b.sequence
        assert a.residue_names == b.residue_names
        assert a.insertion_codes == b.insertion_codes
        np.testing.assert_array_equal(a.residue_numbers, b.residue_numbers)
        np.testing.assert_array_equal(a.atom_mask, b.atom_mask)
        np.testing.assert_allclose(a.atom_positions, b.atom_positions, atol=tolerance)
        np.testing.assert_allclose(a.b_factors, b.b_factors, atol=5.1e-3)
        if full and a.seqres is not None:
            assert a.seqres == b.seqres
            np.testing.assert_array_equal(a.seqres_index, b.seqres_index)


def note(structure: Structure, *words: str) -> bool:
    """Some note holds all these words."""
    return any(all(word in line for word in words) for line in structure.notes)
