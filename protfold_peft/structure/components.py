"""What a residue name means: which amino acid it stands for, or that it is none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import gemmi

from protfold_peft.structure.residues import ONE_TO_THREE, THREE_TO_ONE

# Names that force fields give to protonation states and bonds of standard residues, and amino acids that become the
# nearest of the twenty. The rest is tabulated by gemmi from the Chemical Component Dictionary.
_VARIANTS = {
    **dict.fromkeys(("HSD", "HSE", "HSP", "HID", "HIE", "HIP", "HSC"), "HIS"),
    **dict.fromkeys(("CYX", "CYM", "CYN", "CY2"), "CYS"),
    **{"ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "LSN": "LYS", "ARN": "ARG", "TYM": "TYR"},
    **{"MSE": "MET", "SEC": "CYS", "PYL": "LYS"},
    # Asparagine or aspartate, glutamine or glutamate: which is not known.
    **{"ASX": "UNK", "GLX": "UNK", "UNK": "UNK"},
}

# Names of four letters that simulation packages give to protonation states and chain ends; the fourth letter stands
# where a two-character chain id would begin.
_FOUR_LETTERS = {
    **dict.fromkeys(("HISA", "HISB", "HISD", "HISE", "HISH", "HIS1", "HIS2"), "HIS"),
    **dict.fromkeys(("CYSH", "CYS1", "CYS2", "CYSX"), "CYS"),
    **{"ASPP": "ASP", "ASPH": "ASP", "GLUP": "GLU", "GLUH": "GLU", "LYSH": "LYS", "LYSN": "LYS", "ARGN": "ARG"},
    **{f"{end}{name}": name for end in "NC" for name in (*THREE_TO_ONE, "HID", "HIE", "HIP", "CYX")},
}

# Atom names of modified residues and of simulation packages, in terms of the parent's.
_ATOM_ALIASES = {
    "MSE": {"SE": "SD"},
    "SEC": {"SE": "SG"},
    "ILE": {"CD": "CD1"},
}
# How an atom is written when its place in the 37 belongs to another element.
_WRITTEN_ATOMS = {("MSE", "SD"): ("SE", "SE"), ("SEC", "SG"): ("SE", "SE")}
_TERMINAL_OXYGENS = (("OT1", "OT2"), ("OC1", "OC2"), ("O1", "O2"), ("OCT1", "OCT2"))


def parent(name: str, parents: Mapping[str, str]) -> str | None:
    """The one-letter code of the amino acid that `name` is or derives from, `X` for an unknown one.

    Args:
        name: Residue name, upper case.
        parents: What the file itself says of modified residues (MODRES, `_chem_comp.mon_nstd_parent_comp_id`).

    Returns:
        None where `name` is not known to be an amino acid.
    """
    if name in THREE_TO_ONE:
        return THREE_TO_ONE[name]
    if name in _VARIANTS:
        return THREE_TO_ONE[_VARIANTS[name]]
    if parents.get(name) in THREE_TO_ONE:
        return THREE_TO_ONE[parents[name]]
    return _tabulated(name)


@lru_cache(maxsize=4096)
def _tabulated(name: str) -> str | None:
    info = gemmi.find_tabulated_residue(name)
    if not info.is_amino_acid():
        return None
    letter = info.one_letter_code.upper()
    return letter if letter in ONE_TO_THREE else "X"


@lru_cache(maxsize=4096)
def other_kind(name: str) -> str:
    """What a residue is that is no amino acid: `nucleic acid`, `water`, `ligand` (known), or `unknown`."""
    info = gemmi.find_tabulated_residue(name)
    if info.is_nucleic_acid():
        return "nucleic acid"
    if info.is_water() or name in ("TIP", "TIP3", "T3P", "T4P", "SOL", "SPC", "WAT", "TP3"):
        return "water"
    return "ligand" if info.found() else "unknown"


def four_letter_name(name: str) -> str | None:
    """The residue that a four-letter name of a simulation package stands for, None where it is no such name."""
    return _FOUR_LETTERS.get(name)


def atom_aliases(name: str, atom_names: set[str]) -> dict[str, str]:
    """New names for atoms of residue `name`, where its own differ from those of the standard residues."""
    aliases = {old: new for old, new in _ATOM_ALIASES.get(name, {}).items() if old in atom_names}
    aliases = {old: new for old, new in aliases.items() if new not in atom_names}
    if "O" not in atom_names:
        for first, second in _TERMINAL_OXYGENS:
            if first in atom_names and second in atom_names:
                aliases.update({first: "O", second: "OXT"})
                break
    return aliases


def written_atom(residue: str, atom: str) -> tuple[str, str]:
    """Name and element, both upper case, under which a file has `atom` (one of `ATOM_TYPES`) of a residue."""
    return _WRITTEN_ATOMS.get((residue, atom), (atom, atom[0]))
