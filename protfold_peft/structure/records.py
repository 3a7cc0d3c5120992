"""What the PDB and the mmCIF readers hand on: residues as groups of rows of the file, and what the header says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from protfold_peft.errors import StructureError

# Farther from the origin than any structure: such a number is not a coordinate.
_FARTHEST = 1e6


@dataclass(slots=True)
class Atom:
    """One atom record; `place` says where it stands ("line 12")."""

    name: str
    altloc: str
    position: tuple[float, ...]
    occupancy: float
    b_factor: float
    place: str


@dataclass(slots=True)
class Group:
    """The rows of one residue, or of one part of it, that follow each other.

    Attributes:
        chain: Author chain id.
        number: Author residue number as text: it is parsed only for residues that are read.
        icode: Insertion code, empty where there is none.
        name: Residue name, upper case.
        hetero: The rows are HETATM.
        segment: What separates copies of a chain id: how many TER went before (PDB), the label chain id (mmCIF).
        segid: Segment identifier of old PDB files, columns 73-76.
        rows: Rows of the file, as its reader counts them.
        in_polymer: Whether the file says that the residue belongs to a polypeptide; None where it does not say.
        label_number: mmCIF `label_seq_id`.
        chain_columns: Columns 21-22 of a PDB file as they are.
    """

    chain: str
    number: str
    icode: str
    name: str
    hetero: bool
    segment: str
    segid: str
    rows: list[int]
    in_polymer: bool | None = None
    label_number: int | None = None
    chain_columns: str = "  "


@dataclass
class Table:
    """One model of one file.

    Attributes:
        path: The file.
        groups: In file order.
        read_atoms: Parses the rows of a group; raises `StructureError` on the first that cannot be read.
        read_number: Author residue number of a group.
        seqres: Residue names of the full sequence, by author chain id.
        ters: How many TER records each chain id has (PDB).
        parents: Parent residue of each modified residue that the file explains.
    """

    path: Path
    groups: list[Group]
    read_atoms: Callable[[Group], list[Atom]]
    read_number: Callable[[Group], int]
    model: int = 1
    n_models: int = 1
    seqres: dict[str, list[str]] = field(default_factory=dict)
    ters: dict[str, int] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    resolution: float | None = None
    release_date: str | None = None
    notes: list[str] = field(default_factory=list)


def number_or_none(text: str) -> float | None:
    """The finite number that `text` is, None where it is none (`nan`, `inf`, stars, blanks, `1_0`)."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def position(texts: tuple[str, str, str], axes: tuple[str, str, str], path: Path, place: str) -> tuple[float, ...]:
    """Coordinates x, y, z in angstrom.

    Raises:
        StructureError: One of them, named as in `axes`, is blank, not a finite number, or absurdly large.
    """
    x, y, z = texts
    try:
        values = (float(x), float(y), float(z))
        # One comparison for all three: NaN and infinity fail it as well.
        if abs(values[0]) + abs(values[1]) + abs(values[2]) < _FARTHEST and "_" not in x + y + z:
            return values
    except ValueError:
        pass
    for text, axis in zip(texts, axes, strict=True):
        value = number_or_none(text)
        if value is None or abs(value) >= _FARTHEST / 3:
            shown = text.strip()
            what = f"'{shown}', which is no coordinate" if shown else "blank"
            raise StructureError(f"{path}: {place}: {axis} is {what}; correct the record or remove it")
    raise StructureError(f"{path}: {place}: the coordinates are too large; correct the record or remove it")
