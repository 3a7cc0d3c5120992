"""One residue out of the records a file has for it: alternate locations, heterogeneity, duplicates."""

from __future__ import annotations

from dataclasses import dataclass

from protfold_peft.errors import StructureError
from protfold_peft.structure.records import Atom, Group, Table
from protfold_peft.structure.residues import BACKBONE_ATOMS

# Copies of an atom closer than this (angstrom) are the same record written twice.
_SAME_PLACE = 1e-3


@dataclass(slots=True)
class Conformer:
    """The atoms of one residue, one per name, and what was decided to get there.

    Attributes:
        name: Residue name.
        atoms: By atom name, in file order.
        group: A group of this residue that has the taken name (for numbers and places).
        choice: The alternate location taken and those there were, None where there was no choice.
        names: All residue names, where there were several.
        n_duplicates: Records left out because they repeat another one.
        displaced: Names of atoms that occurred twice at different places without a label.
    """

    name: str
    atoms: dict[str, Atom]
    group: Group
    choice: tuple[str, tuple[str, ...]] | None = None
    names: tuple[str, ...] = ()
    n_duplicates: int = 0
    displaced: tuple[str, ...] = ()


def one_conformer(table: Table, groups: list[Group], parsed: list[list[Atom]], label: str) -> Conformer:
    """The most occupied conformer of the residue that `groups` (same chain, number, insertion code) describe.

    Args:
        table: The file.
        groups: The residue's groups, in file order.
        parsed: Their atoms.
        label: "chain A residue 12", for errors.

    Raises:
        StructureError: Two different residues share the number.
    """
    group, atoms, names = _one_name(table, groups, parsed, label)
    if all(not atom.altloc for atom in atoms) and len({atom.name for atom in atoms}) == len(atoms):
        return Conformer(group.name, {atom.name: atom for atom in atoms}, group, names=names)

    by_name: dict[str, dict[str, Atom]] = {}
    n_duplicates, displaced = 0, {}
    for atom in atoms:
        places = by_name.setdefault(atom.name, {})
        twin = places.get(atom.altloc)
        if twin is None:
            places[atom.altloc] = atom
        elif _same_place(twin, atom):
            n_duplicates += 1
        else:
            displaced[atom.name] = (twin, atom)
            if atom.occupancy > twin.occupancy:
                places[atom.altloc] = atom
    _refuse_two_residues(table, by_name, displaced, f"{label} ({group.name})")

    taken, labels = _taken_label(by_name)
    chosen = {}
    for name, places in by_name.items():
        # An atom the taken conformer lacks is common to all, or only known from another one.
        chosen[name] = places.get(taken) or places.get("") or max(places.values(), key=lambda atom: atom.occupancy)
    return Conformer(
        group.name,
        chosen,
        group,
        choice=(taken, labels) if len(labels) > 1 else None,
        names=names,
        n_duplicates=n_duplicates,
        displaced=tuple(displaced),
    )


def _one_name(
    table: Table, groups: list[Group], parsed: list[list[Atom]], label: str
) -> tuple[Group, list[Atom], tuple[str, ...]]:
    """The residue name with most occupancy, and the atoms under it."""
    by_name: dict[str, list[Atom]] = {}
    for group, atoms in zip(groups, parsed, strict=True):
        by_name.setdefault(group.name, []).extend(atoms)
    first = next(iter(by_name))
    if len(by_name) == 1:
        return groups[0], by_name[first], ()
    labelled = [atoms for atoms in by_name.values() if any(atom.altloc or atom.occupancy < 1 for atom in atoms)]
    if len(labelled) < len(by_name):
        places = ", ".join(f"{name} at {atoms[0].place}" for name, atoms in by_name.items())
        raise StructureError(
            f"{table.path}: {label} is given as different residues without alternate locations ({places}); "
            "renumber one of them or give it another chain id"
        )
    taken = max(by_name, key=lambda name: _total_occupancy(by_name[name]))
    group = next(group for group in groups if group.name == taken)
    return group, by_name[taken], tuple(by_name)


def _total_occupancy(atoms: list[Atom]) -> float:
    """Occupancy of a residue name: that of its CA over all alternate locations, or the mean over the atoms it has."""
    alphas = [atom.occupancy for atom in atoms if atom.name == "CA"]
    if alphas:
        return sum(alphas)
    return sum(atom.occupancy for atom in atoms) / len({atom.name for atom in atoms})


def _taken_label(by_name: dict[str, dict[str, Atom]]) -> tuple[str, tuple[str, ...]]:
    """The alternate location taken for the whole residue, and all those to choose from.

    The occupancy of CA decides where CA has alternatives, so that the trace follows the most occupied backbone;
    otherwise the mean over the atoms that have any. The first wins a tie.
    """
    several = [places for places in by_name.values() if len(places) > 1]
    labels: dict[str, None] = {}
    for places in several:
        labels.update(dict.fromkeys(places))
    if not labels:
        # No atom has two locations; a lone label ("A" and nothing else) is no choice.
        return next((label for places in by_name.values() for label in places if label), ""), ()
    alpha = by_name.get("CA", {})
    deciding = [alpha] if len(alpha) > 1 else several

    def occupancy(label: str) -> float:
        values = [places[label].occupancy for places in deciding if label in places]
        return sum(values) / len(values) if values else -1.0

    return max(labels, key=occupancy), tuple(labels)


def _same_place(one: Atom, other: Atom) -> bool:
    return all(abs(a - b) <= _SAME_PLACE for a, b in zip(one.position, other.position, strict=True))


def _refuse_two_residues(
    table: Table, by_name: dict[str, dict[str, Atom]], displaced: dict[str, tuple[Atom, Atom]], label: str
) -> None:
    """A residue whose whole backbone occurs twice, fully occupied, is two residues with one number."""
    backbone = [name for name in BACKBONE_ATOMS if name in by_name]
    if not backbone or not all(name in displaced for name in backbone):
        return
    one, other = displaced[backbone[0]]
    if one.occupancy < 1 and other.occupancy < 1:
        return  # alternate locations without labels
    raise StructureError(
        f"{table.path}: {label} occurs twice with different coordinates ({one.place} and {other.place}); "
        "give the copies different chain ids, or write them as separate models"
    )
