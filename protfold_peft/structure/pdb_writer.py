"""Writing PDB files whose columns hold, or refusing to.

Fixed columns overflow silently in most writers: a coordinate of 10000 shifts the line, a B-factor of 1000 fuses with
its neighbour. Here everything that does not fit is refused with a pointer to mmCIF.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from protfold_peft.errors import StructureError
from protfold_peft.structure.components import written_atom
from protfold_peft.structure.polymer import chain_label
from protfold_peft.structure.residues import ATOM_TYPES, ONE_TO_THREE, THREE_TO_ONE
from protfold_peft.structure.types import Chain, Structure
from protfold_peft.structure.writing import check_structure, residue_label, write_structure_text

_MOST_SERIALS = 99_999
_NUMBERS = (-999, 9999)
_USE_MMCIF = "write mmCIF instead"


def write_pdb(structure: Structure, path: str | os.PathLike[str], *, remarks: Sequence[str] = ()) -> None:
    """Write the chains as one PDB model, whole or not at all.

    Every residue is written as ATOM under its name in `residue_names`, with SEQRES where the full sequence is known,
    MODRES for modified residues, TER after each chain, and END. Reading the file back gives the same structure.

    Args:
        structure: What to write.
        path: The file; gzipped where the name ends in `.gz`.
        remarks: Free text, one or more lines each, written as REMARK 99.

    Raises:
        StructureError: Something does not fit the format (more than 99,999 records, chain ids longer than one
            character, numbers outside -999..9999, coordinates outside -999.999..9999.999, B-factors outside
            -99.99..999.99) or is not finite. Nothing is written then.
    """
    path = Path(path)
    check_structure(structure, path)
    for chain in structure.chains:
        _check_chain(chain, path)
    n_records = sum(int(chain.atom_mask.sum()) + 1 for chain in structure.chains)
    if n_records > _MOST_SERIALS:
        raise StructureError(f"{path}: {n_records} atom records do not fit a PDB file (99,999 do); {_USE_MMCIF}")
    lines = [f"TITLE     {line}" for line in _wrapped(structure.name, 70)[:1]]
    if structure.resolution is not None:
        lines.append(f"REMARK   2 RESOLUTION. {structure.resolution:7.2f} ANGSTROMS.")
    lines += [f"REMARK  99 {line}" for remark in remarks for line in _wrapped(remark, 69)]
    for chain in structure.chains:
        lines.extend(_header_lines(chain))
    serial = 0
    for chain in structure.chains:
        for line in _atom_lines(chain, serial, path):
            lines.append(line)
            serial += 1
    lines.append("END")
    write_structure_text(path, "".join(f"{line:<80}\n" for line in lines))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of ASCII, as the format requires; other characters become `?`."""
    plain = text.encode("ascii", "replace").decode("ascii")
    return [piece for line in plain.splitlines() for piece in textwrap.wrap(line, width) or [""]]


def _check_chain(chain: Chain, path: Path) -> None:
    label = chain_label(chain.id)
    if len(chain.id) > 1 or not chain.id.isascii():
        raise StructureError(f"{path}: chain id '{chain.id}' is not one character, as PDB requires; {_USE_MMCIF}")
    for row, (name, number, icode) in enumerate(
        zip(chain.residue_names, chain.residue_numbers, chain.insertion_codes, strict=True)
    ):
        where = f"{path}: {label} residue {residue_label(chain, row)}"
        if not _NUMBERS[0] <= number <= _NUMBERS[1]:
            raise StructureError(f"{where}: its number does not fit four columns; {_USE_MMCIF}")
        if len(name) > 3 or not name.isascii() or len(icode) > 1:
            raise StructureError(f"{where}: its name or insertion code is too long for PDB; {_USE_MMCIF}")


def _header_lines(chain: Chain) -> Iterator[str]:
    """SEQRES and MODRES."""
    letter = chain.id or " "
    # The row number has three columns, which 999 rows of 13 fill.
    if chain.seqres is not None and len(chain.seqres) <= 9999:
        names = full_sequence_names(chain)
        for start in range(0, len(names), 13):
            row = " ".join(f"{name:>3}" for name in names[start : start + 13])
            yield f"SEQRES {start // 13 + 1:3d} {letter} {len(names):4d}  {row}"
    for name, number, icode, parent in zip(
        chain.residue_names, chain.residue_numbers, chain.insertion_codes, chain.sequence, strict=True
    ):
        if name not in THREE_TO_ONE and parent != "X":
            yield f"MODRES      {name:>3} {letter} {number:4d}{icode or ' '} {ONE_TO_THREE[parent]}"


def full_sequence_names(chain: Chain) -> list[str]:
    """Residue names of the full sequence: those of the chain where it has residues, standard ones elsewhere."""
    if chain.seqres is None or chain.seqres_index is None:
        return list(chain.residue_names)
    names = [ONE_TO_THREE.get(letter, "UNK") for letter in chain.seqres]
    for place, name in zip(chain.seqres_index, chain.residue_names, strict=True):
        names[place] = name
    return names


def _atom_lines(chain: Chain, serial: int, path: Path) -> Iterator[str]:
    """ATOM lines numbered on from `serial`, and TER."""
    letter = chain.id or " "
    residue = ""
    for row, column in np.argwhere(chain.atom_mask):
        serial += 1
        name = chain.residue_names[row]
        residue = f"{name:>3} {letter}{chain.residue_numbers[row]:4d}{chain.insertion_codes[row] or ' '}"
        atom, element = written_atom(name, ATOM_TYPES[column])
        # The element ends in column 14: one letter leaves column 13 blank.
        padded = f"{atom:<4}" if len(element) == 2 else f" {atom:<3}"
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        x, y, z = (_fixed(value, 8, 3) for value in chain.atom_positions[row, column])
        b = _fixed(chain.b_factors[row, column], 6, 2)
        if len(x) + len(y) + len(z) + len(b) != 30:
            raise StructureError(
                f"{path}: {chain_label(chain.id)} residue {residue_label(chain, row)} atom {atom}: coordinates "
                f"({x.strip()}, {y.strip()}, {z.strip()}) or B-factor ({b.strip()}) do not fit PDB columns; "
                f"{_USE_MMCIF}"
            )
        yield f"ATOM  {serial:5d} {padded} {residue}   {x}{y}{z}  1.00{b}          {element:>2}"
    yield f"TER   {serial + 1:5d}      {residue}"


def _fixed(value: float, width: int, decimals: int) -> str:
    return f"{round(float(value), decimals) + 0.0:{width}.{decimals}f}"
