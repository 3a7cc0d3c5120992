"""The models of a file of several."""

from __future__ import annotations

import gemmi

from protfold_peft.structure.source import read_text
from protfold_peft.structure.types import Structure


def model_numbers(first: Structure) -> list[int]:
    """Numbers of the models that have atoms, in file order, of the file whose first model this is.

    Raises:
        StructureError: The file is gone.
    """
    if first.n_models == 1 or first.source is None:
        return [first.model]
    text, kind = read_text(first.source)
    found = _mmcif_numbers(text) if kind == "mmcif" else _pdb_numbers(text)
    return list(dict.fromkeys([first.model, *found]))


def _mmcif_numbers(text: str) -> list[int]:
    for block in gemmi.cif.read_string(text):
        numbers = dict.fromkeys(block.find_values("_atom_site.pdbx_PDB_model_num"))
        if numbers:
            return [int(number) for number in numbers if number.isdigit()]
    return []


def _pdb_numbers(text: str) -> list[int]:
    """Numbers of the MODEL records that atoms follow; one without a number has the next."""
    numbers: list[int] = []
    announced: int | None = None
    for line in text.split("\n"):
        if line[:6].rstrip() == "MODEL":
            fields = line[5:].split()
            known = bool(fields) and fields[0].lstrip("-").isdigit()
            announced = int(fields[0]) if known else numbers[-1] + 1 if numbers else 1
        elif announced is not None and line.startswith(("ATOM", "HETATM")):
            numbers.append(announced)
            announced = None
    return numbers
