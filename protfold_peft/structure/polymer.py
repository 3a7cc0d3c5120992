"""Which residues of a file are protein, and in which chain and order they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from protfold_peft.structure.components import atom_aliases, other_kind, parent
from protfold_peft.structure.records import Atom, Group, Table
from protfold_peft.structure.residues import ALLOWED_ATOMS, THREE_TO_ONE

# Neighbours in a chain: C-N, or CA-CA where one of them has nothing else (angstrom).
_BOND = 2.0
_ALPHA_STEP = (2.5, 4.4)


@dataclass(slots=True)
class Part:
    """A group that may be (part of) an amino acid: its letter and its atoms under the standard names."""

    group: Group
    letter: str
    atoms: list[Atom]
    unknown_atoms: tuple[str, ...] = ()

    def position(self, name: str) -> tuple[float, ...] | None:
        """Of the atom of this name, in angstrom; None where it is not there."""
        return next((atom.position for atom in self.atoms if atom.name == name), None)


def protein_parts(table: Table, chains: Sequence[str] | None) -> tuple[dict[str, list[Part]], list[str]]:
    """The protein of a file, by chain id, in order along the chain.

    Args:
        table: The file; chains told apart by segment identifiers get those as ids in its groups.
        chains: Read these only; None for all.

    Returns:
        Parts by chain id, and notes on what was left out and what was decided.
    """
    notes: list[str] = []
    by_chain: dict[str, list[Part]] = {}
    left_out: dict[str, Counter[str]] = {}
    hydrogens = 0
    # A chain asked for may be known by its segment identifier only, which takes the whole chain id to find out.
    read = None if chains is None else {group.chain for group in table.groups if group.segid in chains} | set(chains)
    for group in table.groups:
        if read is not None and group.chain not in read:
            continue
        part = _part(table, group)
        if part is None:
            left_out.setdefault(group.chain, Counter())[group.name] += 1
        else:
            hydrogens += len(group.rows) - len(part.atoms) - len(part.unknown_atoms)
            by_chain.setdefault(group.chain, []).append(part)
    by_chain = _split_by_segid(table, by_chain, notes)

    result: dict[str, list[Part]] = {}
    for chain, parts in by_chain.items():
        if chains is not None and chain not in chains:
            continue
        kept, dropped, moved = _in_polymer(table, chain, parts)
        if moved:
            notes.append(f"{chain_label(chain)}: {list_some(moved)} put where the peptide bonds say")
        if dropped:
            names = Counter(part.group.name for part in dropped)
            left_out.setdefault(chain, Counter()).update(names)
        if kept:
            result[chain] = kept
    notes.extend(_left_out_notes(left_out, result))
    if hydrogens:
        notes.append(f"{hydrogens} hydrogen atoms left out")
    return result, notes


def _part(table: Table, group: Group) -> Part | None:
    """The group as an amino acid, None where it is something else."""
    if group.in_polymer is False:
        return None
    letter = parent(group.name, table.parents)
    kind = other_kind(group.name) if letter is None else ""
    if kind in ("nucleic acid", "water", "ligand") and not group.in_polymer:
        if kind == "ligand" and not group.hetero:
            # An ATOM record of a ligand may be a line whose columns have slipped (ALA read as AL): then its
            # coordinates cannot be read either, which raises.
            table.read_atoms(group)
        return None
    atoms = table.read_atoms(group)
    names = {atom.name for atom in atoms}
    if letter is None:
        # A residue that nobody tabulates is an amino acid if it has the backbone of one.
        alone = names == {"CA"} and not group.hetero and group.in_polymer is None
        if not (names >= {"N", "CA", "C"} or alone or (group.in_polymer and "CA" in names)):
            return None
        letter = "X"
    aliases = atom_aliases(group.name, names)
    if aliases:
        for atom in atoms:
            atom.name = aliases.get(atom.name, atom.name)
    allowed = ALLOWED_ATOMS[letter]
    kept = [atom for atom in atoms if atom.name in allowed]
    foreign = tuple(atom.name for atom in atoms if atom.name not in allowed and not _is_hydrogen(atom.name))
    return Part(group, letter, kept, foreign)


def _is_hydrogen(name: str) -> bool:
    """Hydrogen or deuterium by its name: `H`, `1HB`, `HG21`, `D`, `DA`; amino acids have no mercury or holmium."""
    return name.lstrip("0123456789'\"*")[:1] in ("H", "D")


def _split_by_segid(table: Table, by_chain: dict[str, list[Part]], notes: list[str]) -> dict[str, list[Part]]:
    """Chains that share an id (often a blank one) and differ in the segment identifier become chains of their own.

    Simulation packages write one chain id, or none, and tell chains apart in columns 73-76. Segment identifiers are
    only heeded where residue numbers collide without them.
    """
    result: dict[str, list[Part]] = {}
    for chain, parts in by_chain.items():
        segids = list(dict.fromkeys(part.group.segid for part in parts))
        collision = False
        if len(segids) > 1 and "" not in segids:
            owners: dict[tuple[str, str, str], str] = {}
            for part in parts:
                for atom in part.atoms:
                    key = (part.group.number, part.group.icode, atom.name)
                    owner = owners.setdefault(key, part.group.segid)
                    collision |= owner != part.group.segid and not atom.altloc
        if not collision:
            result[chain] = parts
            continue
        names = {}
        for segid in segids:
            free = segid not in by_chain and segid not in result
            names[segid] = segid if free else f"{chain}{segid}"
        notes.append(
            f"{chain_label(chain)} holds several chains: segment identifiers (columns 73-76) are taken as chain ids "
            f"({', '.join(repr(name) for name in names.values())})"
        )
        for part in parts:
            part.group.chain = names[part.group.segid]
            result.setdefault(part.group.chain, []).append(part)
        if chain in table.seqres:
            notes.append(f"{chain_label(chain)}: SEQRES is of several chains and not used")
    return result


def _in_polymer(table: Table, chain: str, parts: list[Part]) -> tuple[list[Part], list[Part], list[str]]:
    """The parts that belong to the chain in order, those that do not, and names of those moved to their place.

    ATOM records belong to it. HETATM records may be a modified residue or a free amino acid: those belong to it that
    mmCIF puts in a polypeptide entity, those among the ATOM records of the chain, modified residues that stand before
    the last of these or before TER with their name in SEQRES, and whatever is bonded to a residue of the chain.
    """
    if all(part.group.in_polymer or not part.group.hetero for part in parts):
        return parts, [], []
    atoms = [i for i, part in enumerate(parts) if not part.group.hetero]
    first_atom, last_atom = (atoms[0], atoms[-1]) if atoms else (-1, -1)
    listed = set(table.seqres.get(chain, ()))
    chosen: list[Part] = []
    doubtful: list[Part] = []
    for i, part in enumerate(parts):
        group = part.group
        before_ter = group.segment == "0" and table.ters.get(chain, 0) > 0
        modified = group.name not in THREE_TO_ONE
        fits = i < last_atom or (before_ter and group.name in listed) or (group.name == "MSE" and group.segment == "0")
        inside = first_atom < i < last_atom and all(
            parts[end].group.segment == group.segment for end in (first_atom, last_atom)
        )
        if group.in_polymer or not group.hetero or inside or (modified and fits):
            chosen.append(part)
        else:
            doubtful.append(part)
    return _attach(chosen, doubtful) if chosen else _bonded_chain(doubtful)


def _bonded_chain(parts: list[Part]) -> tuple[list[Part], list[Part], list[str]]:
    """Of residues that are all HETATM, those bonded to the next or the one before; a lone one is a ligand."""
    linked = [False] * len(parts)
    for i in range(len(parts) - 1):
        if bonded(parts[i], parts[i + 1]):
            linked[i] = linked[i + 1] = True
    kept = [part for part, yes in zip(parts, linked, strict=True) if yes]
    return kept, [part for part, yes in zip(parts, linked, strict=True) if not yes], []


def _attach(chosen: list[Part], doubtful: list[Part]) -> tuple[list[Part], list[Part], list[str]]:
    """Put doubtful residues next to the chosen ones they are bonded to, until none fits."""
    moved: list[str] = []
    again = True
    while again and doubtful:
        again = False
        for part in list(doubtful):
            place = _bonded_place(chosen, part)
            if place is None:
                continue
            if place < len(chosen) and chosen[place].group.rows[0] < part.group.rows[0]:
                moved.append(f"{part.group.name} {part.group.number.strip()}{part.group.icode}")
            chosen.insert(place, part)
            doubtful.remove(part)
            again = True
    return chosen, doubtful, moved


def _bonded_place(chosen: list[Part], part: Part) -> int | None:
    """Where `part` goes among the chosen, None where it is bonded to none of them."""
    for i, other in enumerate(chosen):
        if bonded(other, part):
            return i + 1
        if bonded(part, other):
            return i
    return None


def bonded(one: Part, other: Part) -> bool:
    """`other` follows `one` along a chain: C-N within a bond, or consecutive CA where one has no such atom."""
    c, n = one.position("C"), other.position("N")
    if c is not None and n is not None:
        return _distance_squared(c, n) < _BOND**2
    a, b = one.position("CA"), other.position("CA")
    if a is None or b is None:
        return False
    return _ALPHA_STEP[0] ** 2 < _distance_squared(a, b) < _ALPHA_STEP[1] ** 2


def _distance_squared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _left_out_notes(left_out: dict[str, Counter[str]], kept: dict[str, list[Part]]) -> list[str]:
    """One sentence per kind of thing that is no protein."""
    notes = []
    waters = 0
    for chain, names in left_out.items():
        kinds: dict[str, Counter[str]] = {}
        for name, count in names.items():
            kind = "free amino acid" if name in THREE_TO_ONE else other_kind(name)
            if kind == "water":
                waters += count
            else:
                kinds.setdefault("ligand" if kind == "unknown" else kind, Counter())[name] += count
        for kind, members in kinds.items():
            if kind == "nucleic acid":
                whole = "" if chain in kept else ", which is the whole chain"
                notes.append(f"{chain_label(chain)}: nucleic acid left out ({sum(members.values())} residues{whole})")
            else:
                notes.append(
                    f"{chain_label(chain)}: {kind}s left out ({list_some([f'{n} x{c}' for n, c in members.items()])})"
                )
    if waters:
        notes.append(f"{waters} waters left out")
    return notes


def list_some(items: Sequence[str], most: int = 8) -> str:
    """The first `most` of them in one line, and how many there are beside."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def chain_label(chain: str) -> str:
    """What messages call a chain: some files leave its id blank."""
    return f"chain {chain}" if chain else "the chain with blank id"
