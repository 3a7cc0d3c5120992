"""Residue constants: names, atom layouts, chi angles, rigid groups and ideal coordinates of the twenty amino acids.

Everything below the tables is derived from them. Array axes: 21 residue types (`RESTYPES`, the last is unknown),
37 atom types (`ATOM_TYPES`), 14 places of the compact layout, 8 rigid groups (0 backbone, 1 omega, 2 phi, 3 psi,
4..7 chi1..chi4), 4 chi angles. Arrays are read-only.

Source: Jumper et al. 2021 (AlphaFold 2), supplement, table 2 and section 1.8.4: the orders of residues and atoms, the
groups, and the mean positions of atoms in the frame of their group.
"""

from __future__ import annotations

import numpy as np

# The order AlphaFold and ESMFold number amino acids in; the last is everything unknown.
RESTYPES = "ARNDCQEGHILKMFPSTWYVX"
UNKNOWN = RESTYPES.index("X")
RESTYPE_INDEX = {letter: index for index, letter in enumerate(RESTYPES)}

_ATOM_TYPES = """
    N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 OE2 CH2 NH1 NH2 OH CZ
    CZ2 CZ3 NZ OXT
"""
ATOM_TYPES = tuple(_ATOM_TYPES.split())
ATOM_INDEX = {name: index for index, name in enumerate(ATOM_TYPES)}
ATOM_ELEMENTS = tuple(name[0] for name in ATOM_TYPES)
BACKBONE_ATOMS = ("N", "CA", "C", "O")

# Atoms from the backbone along each side chain: chi_k is the dihedral of atoms k-1 .. k+2 of the path.
CHI_PATHS = {
    "ALA": "",
    "ARG": "N CA CB CG CD NE CZ",
    "ASN": "N CA CB CG OD1",
    "ASP": "N CA CB CG OD1",
    "CYS": "N CA CB SG",
    "GLN": "N CA CB CG CD OE1",
    "GLU": "N CA CB CG CD OE1",
    "GLY": "",
    "HIS": "N CA CB CG ND1",
    "ILE": "N CA CB CG1 CD1",
    "LEU": "N CA CB CG CD1",
    "LYS": "N CA CB CG CD CE NZ",
    "MET": "N CA CB CG SD CE",
    "PHE": "N CA CB CG CD1",
    "PRO": "N CA CB CG CD",
    "SER": "N CA CB OG",
    "THR": "N CA CB OG1",
    "TRP": "N CA CB CG CD1",
    "TYR": "N CA CB CG CD1",
    "VAL": "N CA CB CG1",
}

ONE_TO_THREE = dict(zip(RESTYPES, (*CHI_PATHS, "UNK"), strict=True))
THREE_TO_ONE = {three: one for one, three in ONE_TO_THREE.items()}

# Chi angles that turn into themselves by half a turn (two ends of a carboxylate or a ring): residue -> chi, from 0.
_HALF_TURN_CHI = {"ASP": 1, "GLU": 2, "PHE": 1, "TYR": 1}

# Atoms whose names may be exchanged together with the half turn above.
AMBIGUOUS_ATOMS = {
    "ASP": (("OD1", "OD2"),),
    "GLU": (("OE1", "OE2"),),
    "PHE": (("CD1", "CD2"), ("CE1", "CE2")),
    "TYR": (("CD1", "CD2"), ("CE1", "CE2")),
}

# Per residue, in the order of the 14-atom layout: atom, rigid group, ideal x y z in the frame of that group (angstrom).
# A group's origin is the end of its rotation axis, x runs along the axis, and the atom that defines the angle lies in
# the xy plane at positive y.
_IDEAL = {
    "ALA": """
        N   0 -0.525  1.363  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.526  0.000  0.000
        O   3  0.627  1.062  0.000
        CB  0 -0.529 -0.774 -1.205
    """,
    "ARG": """
        N   0 -0.524  1.362  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.525  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.524 -0.778 -1.209
        CG  4  0.616  1.390  0.000
        CD  5  0.564  1.414  0.000
        NE  6  0.539  1.357  0.000
        CZ  7  0.758  1.093  0.000
        NH1 7  0.206  2.301  0.000
        NH2 7  2.078  0.978  0.000
    """,
    "ASN": """
        N   0 -0.536  1.357  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.526  0.000  0.000
        O   3  0.625  1.062  0.000
        CB  0 -0.531 -0.787 -1.200
        CG  4  0.584  1.399  0.000
        OD1 5  0.633  1.059  0.000
        ND2 5  0.593 -1.188  0.001
    """,
    "ASP": """
        N   0 -0.525  1.362  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.527  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.526 -0.778 -1.208
        CG  4  0.593  1.398  0.000
        OD1 5  0.610  1.091  0.000
        OD2 5  0.592 -1.101 -0.003
    """,
    "CYS": """
        N   0 -0.522  1.362  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.524  0.000  0.000
        O   3  0.625  1.062  0.000
        CB  0 -0.519 -0.773 -1.212
        SG  4  0.728  1.653  0.000
    """,
    "GLN": """
        N   0 -0.526  1.361  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.526  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.525 -0.779 -1.207
        CG  4  0.615  1.393  0.000
        CD  5  0.587  1.399  0.000
        OE1 6  0.634  1.060  0.000
        NE2 6  0.593 -1.189 -0.001
    """,
    "GLU": """
        N   0 -0.528  1.361  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.526  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.526 -0.781 -1.207
        CG  4  0.615  1.392  0.000
        CD  5  0.600  1.397  0.000
        OE1 6  0.607  1.095  0.000
        OE2 6  0.589 -1.104 -0.001
    """,
    "GLY": """
        N   0 -0.572  1.337  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.517  0.000  0.000
        O   3  0.626  1.062  0.000
    """,
    "HIS": """
        N   0 -0.527  1.360  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.525  0.000  0.000
        O   3  0.625  1.063  0.000
        CB  0 -0.525 -0.778 -1.208
        CG  4  0.600  1.370  0.000
        ND1 5  0.744  1.160  0.000
        CD2 5  0.889 -1.021  0.003
        CE1 5  2.030  0.851  0.002
        NE2 5  2.145 -0.466  0.004
    """,
    "ILE": """
        N   0 -0.493  1.373  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.527  0.000  0.000
        O   3  0.627  1.062  0.000
        CB  0 -0.536 -0.793 -1.213
        CG1 4  0.534  1.437  0.000
        CG2 4  0.540 -0.785 -1.199
        CD1 5  0.619  1.391  0.000
    """,
    "LEU": """
        N   0 -0.520  1.363  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.525  0.000  0.000
        O   3  0.625  1.063  0.000
        CB  0 -0.522 -0.773 -1.214
        CG  4  0.678  1.371  0.000
        CD1 5  0.530  1.430  0.000
        CD2 5  0.535 -0.774  1.200
    """,
    "LYS": """
        N   0 -0.526  1.362  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.526  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.524 -0.778 -1.208
        CG  4  0.619  1.390  0.000
        CD  5  0.559  1.417  0.000
        CE  6  0.560  1.416  0.000
        NZ  7  0.554  1.387  0.000
    """,
    "MET": """
        N   0 -0.521  1.364  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.525  0.000  0.000
        O   3  0.625  1.062  0.000
        CB  0 -0.523 -0.776 -1.210
        CG  4  0.613  1.391  0.000
        SD  5  0.703  1.695  0.000
        CE  6  0.320  1.786  0.000
    """,
    "PHE": """
        N   0 -0.518  1.363  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.524  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.525 -0.776 -1.212
        CG  4  0.607  1.377  0.000
        CD1 5  0.709  1.195  0.000
        CD2 5  0.706 -1.196  0.000
        CE1 5  2.102  1.198  0.000
        CE2 5  2.098 -1.201  0.000
        CZ  5  2.794 -0.003 -0.001
    """,
    "PRO": """
        N   0 -0.566  1.351  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.527  0.000  0.000
        O   3  0.621  1.066  0.000
        CB  0 -0.546 -0.611 -1.293
        CG  4  0.382  1.445  0.000
        CD  5  0.477  1.424  0.000
    """,
    "SER": """
        N   0 -0.529  1.360  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.525  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.518 -0.777 -1.211
        OG  4  0.503  1.325  0.000
    """,
    "THR": """
        N   0 -0.517  1.364  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.526  0.000  0.000
        O   3  0.626  1.062  0.000
        CB  0 -0.516 -0.793 -1.215
        OG1 4  0.472  1.353  0.000
        CG2 4  0.550 -0.718 -1.228
    """,
    "TRP": """
        N   0 -0.521  1.363  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.525  0.000  0.000
        O   3  0.627  1.062  0.000
        CB  0 -0.523 -0.776 -1.212
        CG  4  0.609  1.370  0.000
        CD1 5  0.824  1.091  0.000
        CD2 5  0.854 -1.148 -0.005
        NE1 5  2.140  0.690 -0.004
        CE2 5  2.186 -0.678 -0.007
        CE3 5  0.622 -2.530 -0.007
        CZ2 5  3.283 -1.543 -0.011
        CZ3 5  1.715 -3.389 -0.011
        CH2 5  3.028 -2.890 -0.013
    """,
    "TYR": """
        N   0 -0.522  1.362  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.524  0.000  0.000
        O   3  0.627  1.062  0.000
        CB  0 -0.522 -0.776 -1.213
        CG  4  0.607  1.382  0.000
        CD1 5  0.716  1.195  0.000
        CD2 5  0.713 -1.194 -0.001
        CE1 5  2.107  1.200 -0.002
        CE2 5  2.104 -1.201 -0.003
        CZ  5  2.791 -0.001 -0.003
        OH  5  4.168 -0.002 -0.005
    """,
    "VAL": """
        N   0 -0.494  1.373  0.000
        CA  0  0.000  0.000  0.000
        C   0  1.527  0.000  0.000
        O   3  0.627  1.062  0.000
        CB  0 -0.533 -0.795 -1.213
        CG1 4  0.540  1.429  0.000
        CG2 4  0.533 -0.776  1.203
    """,
}


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _frame(x_axis: np.ndarray, xy_plane: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """`(4, 4)` transform whose x axis is along `x_axis` and whose xy plane holds `xy_plane`."""
    x = x_axis / np.linalg.norm(x_axis)
    y = xy_plane - (xy_plane @ x) * x
    y /= np.linalg.norm(y)
    frame = np.eye(4)
    frame[:3] = np.stack([x, y, np.cross(x, y), origin], axis=1)
    return frame


def _default_frames(atoms: dict[str, np.ndarray], path: list[str]) -> np.ndarray:
    """`(8, 4, 4)` transforms from each group to the one it hangs on, at all torsions zero."""
    n, ca, c = atoms["N"], atoms["CA"], atoms["C"]
    frames = np.tile(np.eye(4), (8, 1, 1))
    frames[2] = _frame(n - ca, np.array([1.0, 0.0, 0.0]), n)
    frames[3] = _frame(c - ca, ca - n, c)
    for chi in range(max(0, len(path) - 3)):
        end = atoms[path[chi + 2]]
        # From chi2 on, the axis starts at the origin of the group before and -x points back along that group's axis.
        frames[4 + chi] = _frame(end - ca, n - ca, end) if chi == 0 else _frame(end, np.array([-1.0, 0.0, 0.0]), end)
    return frames


# The three atoms of each rigid group's frame: a point on the negative x axis, the origin, a point in the xy plane.
def _base_atoms(path: list[str]) -> dict[int, tuple[str, str, str]]:
    bases = {0: ("C", "CA", "N"), 3: ("CA", "C", "O")}
    for chi in range(max(0, len(path) - 3)):
        bases[4 + chi] = (path[chi + 1], path[chi + 2], path[chi + 3])
    return bases


ATOM14_NAMES: dict[str, tuple[str, ...]] = {}
ATOM14_GROUP = np.zeros((21, 14), dtype=np.int64)
ATOM14_POSITIONS = np.zeros((21, 14, 3))
ATOM14_MASK = np.zeros((21, 14), dtype=bool)
ATOM37_MASK = np.zeros((21, 37), dtype=bool)
ATOM37_GROUP = np.zeros((21, 37), dtype=np.int64)
ATOM37_POSITIONS = np.zeros((21, 37, 3))
ATOM14_TO_ATOM37 = np.zeros((21, 14), dtype=np.int64)  # place in the 37 of each of the 14; 0 where masked
ATOM37_TO_ATOM14 = np.zeros((21, 37), dtype=np.int64)  # place in the 14 of each of the 37; 0 where masked
ATOM14_AMBIGUOUS = np.zeros((21, 14), dtype=bool)
ATOM14_SWAP = np.tile(np.arange(14), (21, 1))  # place of the atom whose name may be exchanged, else its own
CHI_ATOMS = np.zeros((21, 4, 4), dtype=np.int64)  # places in the 37; 0 where masked
CHI_MASK = np.zeros((21, 4), dtype=bool)
CHI_PI_PERIODIC = np.zeros((21, 4), dtype=bool)
GROUP_FRAMES = np.tile(np.eye(4), (21, 8, 1, 1))
GROUP_MASK = np.zeros((21, 8), dtype=bool)
GROUP_BASE_ATOMS = np.zeros((21, 8, 3), dtype=np.int64)  # places in the 37; 0 where masked

for _residue, _table in _IDEAL.items():
    _type = RESTYPE_INDEX[THREE_TO_ONE[_residue]]
    _rows = [line.split() for line in _table.strip().splitlines()]
    _names = [row[0] for row in _rows]
    _path = CHI_PATHS[_residue].split()
    ATOM14_NAMES[_residue] = tuple(_names + [""] * (14 - len(_names)))
    for _place, (_name, _group, *_xyz) in enumerate(_rows):
        _atom = ATOM_INDEX[_name]
        ATOM14_GROUP[_type, _place] = ATOM37_GROUP[_type, _atom] = int(_group)
        ATOM14_POSITIONS[_type, _place] = ATOM37_POSITIONS[_type, _atom] = [float(value) for value in _xyz]
        ATOM14_MASK[_type, _place] = ATOM37_MASK[_type, _atom] = True
        ATOM14_TO_ATOM37[_type, _place] = _atom
        ATOM37_TO_ATOM14[_type, _atom] = _place
    for _one, _other in AMBIGUOUS_ATOMS.get(_residue, ()):
        _i, _j = _names.index(_one), _names.index(_other)
        ATOM14_AMBIGUOUS[_type, [_i, _j]] = True
        ATOM14_SWAP[_type, [_i, _j]] = [_j, _i]
    for _chi in range(len(_path) - 3):
        CHI_ATOMS[_type, _chi] = [ATOM_INDEX[name] for name in _path[_chi : _chi + 4]]
        CHI_MASK[_type, _chi] = True
    if _residue in _HALF_TURN_CHI:
        CHI_PI_PERIODIC[_type, _HALF_TURN_CHI[_residue]] = True
    GROUP_FRAMES[_type] = _default_frames(dict(zip(_names, ATOM14_POSITIONS[_type], strict=False)), _path)
    for _index, _base in _base_atoms(_path).items():
        GROUP_BASE_ATOMS[_type, _index] = [ATOM_INDEX[name] for name in _base]
        GROUP_MASK[_type, _index] = True
ATOM14_NAMES["UNK"] = ("",) * 14
# An unknown residue has a backbone like any other.
for _index, _base in _base_atoms([]).items():
    GROUP_BASE_ATOMS[UNKNOWN, _index] = [ATOM_INDEX[name] for name in _base]
    GROUP_MASK[UNKNOWN, _index] = True

for _array in (
    *(ATOM14_GROUP, ATOM14_POSITIONS, ATOM14_MASK, ATOM37_MASK, ATOM37_GROUP, ATOM37_POSITIONS),
    *(ATOM14_TO_ATOM37, ATOM37_TO_ATOM14, ATOM14_AMBIGUOUS, ATOM14_SWAP),
    *(CHI_ATOMS, CHI_MASK, CHI_PI_PERIODIC, GROUP_FRAMES, GROUP_MASK, GROUP_BASE_ATOMS),
):
    _frozen(_array)

# Atoms that a structure may hold for a residue type: those of the type and the terminal oxygen. An unknown residue
# keeps its backbone and CB, which mean the same in every amino acid.
ALLOWED_ATOMS: dict[str, frozenset[str]] = {
    one: frozenset(ATOM14_NAMES[three]) - {""} | {"OXT"} for one, three in ONE_TO_THREE.items()
}
ALLOWED_ATOMS["X"] = frozenset((*BACKBONE_ATOMS, "CB", "OXT"))


def sequence_to_restypes(sequence: str) -> np.ndarray:
    """`(n,)` residue types 0..20 of one-letter codes; every letter but the twenty is 20 (unknown)."""
    return np.array([RESTYPE_INDEX.get(letter, UNKNOWN) for letter in sequence], dtype=np.int64)
