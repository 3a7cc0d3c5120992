"""mmCIF text into groups of rows: gemmi reads the syntax, this file the categories.

Chains and residue numbers are the author's (`auth_asym_id`, `auth_seq_id`), as in PDB files; the label numbering says
where a residue stands in the full sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import gemmi

from protfold_peft.errors import StructureError
from protfold_peft.structure.records import Atom, Group, Table, number_or_none, position
from protfold_peft.structure.residues import ONE_TO_THREE, THREE_TO_ONE

_UNCERTAINTY = re.compile(r"\(\d+\)$")
_AXES = ("Cartn_x", "Cartn_y", "Cartn_z")
_ABSENT = ("?", ".", "")


def read_mmcif_table(path: Path, text: str, model: int | None) -> Table:
    """Groups of rows of one model.

    Args:
        path: For error messages.
        text: The file.
        model: `pdbx_PDB_model_num`; None for the first model.

    Raises:
        StructureError: The syntax is broken, there are no atoms, or there is no such model.
    """
    block, notes = _atom_block(path, text)
    sites = _Sites(path, block)
    numbers = sites.column("pdbx_PDB_model_num", default="1")
    models = list(dict.fromkeys(numbers))
    if model is None:
        taken = models[0]
    else:
        matching = [number for number in models if number == str(model)]
        if not matching:
            there = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
            raise StructureError(f"{path}: there is no model {model}; the file has {there}")
        taken = matching[0]

    table = Table(path, sites.groups(numbers, taken), sites.read_atoms, sites.read_number)
    table.model = int(taken) if taken.lstrip("-").isdigit() else 1
    table.n_models = len(models)
    table.notes.extend(notes)
    _read_entities(block, table, sites)
    _read_header(block, table)
    return table


def _atom_block(path: Path, text: str) -> tuple[gemmi.cif.Block, list[str]]:
    """The first data block with atoms."""
    try:
        document = gemmi.cif.read_string(text)
    except Exception as error:
        # gemmi says "string:LINE:COLUMN(BYTE): what"; anything it raises means that the syntax is wrong.
        message = " ".join(str(error).split())
        found = re.match(r"string:(\d+):\d+(?:\(\d+\))?:\s*(.*)", message)
        where = f"line {found.group(1)}: {found.group(2)}" if found else message
        raise StructureError(f"{path}: this is not whole, valid mmCIF ({where}); download or write it again") from None
    blocks = [block for block in document if len(_category(path, block, "_atom_site.")) > 0]
    if not blocks:
        raise StructureError(f"{path}: there is no atom_site category: the file has no coordinates")
    notes = [f"{len(blocks)} data blocks have atoms: the first, {blocks[0].name}, is read"] if len(blocks) > 1 else []
    return blocks[0], notes


def _category(path: Path, block: gemmi.cif.Block, name: str) -> gemmi.cif.Table:
    """A category as a table, empty where it is absent."""
    try:
        return block.find_mmcif_category(name)
    except RuntimeError as error:
        raise StructureError(f"{path}: this is not valid mmCIF ({error}); download or write it again") from None


def _plain(value: str) -> str:
    """A value without its quotes; `?` and `.` become the empty string."""
    if value[:1] in "'\";":
        return str(gemmi.cif.as_string(value))
    return "" if value in _ABSENT else value


class _Sites:
    """The atom_site category as columns."""

    def __init__(self, path: Path, block: gemmi.cif.Block) -> None:
        self.path = path
        category = _category(path, block, "_atom_site.")
        loop = category.loop
        self._columns: dict[str, list[str]] = {}
        tags = [tag.split(".", 1)[1].lower() for tag in category.tags]
        if loop is not None:
            values = loop.values
            for place, tag in enumerate(tags):
                self._columns[tag] = values[place :: len(tags)]
        else:  # a single atom, written as pairs
            for place, tag in enumerate(tags):
                self._columns[tag] = list(category.column(place))
        self.size = len(category)
        for axis in "xyz":
            if f"cartn_{axis}" not in self._columns:
                raise StructureError(f"{path}: atom_site has no Cartn_{axis}: the file has no coordinates")
        # A value missing from the author's column is taken from the label column, as the dictionary allows.
        self._names = self.column("label_atom_id", "auth_atom_id")
        self._altlocs = self.column("label_alt_id")
        self._chains = self.column("auth_asym_id", "label_asym_id")
        self._numbers = self.column("auth_seq_id", "label_seq_id")

    def column(self, *tags: str, default: str = "") -> list[str]:
        """Plain values of the first of `tags` that is there; rows without one take the next."""
        result: list[str] = []
        for tag in tags:
            raw = self._columns.get(tag.lower())
            if raw is None:
                continue
            # Large files repeat few values: each is unquoted once.
            plain = {value: _plain(value) for value in set(raw)}
            values = [plain[value] for value in raw]
            result = [one or other for one, other in zip(result, values, strict=True)] if result else values
            if "" not in plain.values():
                break
        if not result:
            return [default] * self.size
        return [value or default for value in result] if default else result

    def groups(self, models: Sequence[str], taken: str) -> list[Group]:
        """Rows of one model, by residue."""
        keys = zip(
            models,
            self._chains,
            self._numbers,
            self.column("pdbx_PDB_ins_code"),
            self.column("label_comp_id", "auth_comp_id"),
            self.column("group_PDB", default="ATOM"),
            self.column("label_asym_id"),
            self.column("label_seq_id"),
            strict=True,
        )
        groups: list[Group] = []
        last: tuple[str, ...] | None = None
        rows: list[int] = []
        for row, key in enumerate(keys):
            if key == last:
                rows.append(row)
                continue
            last = key
            model, chain, number, icode, name, group, label_chain, label_number = key
            rows = [row]
            if model != taken:
                continue
            groups.append(
                Group(
                    chain=chain,
                    number=number,
                    icode=icode,
                    name=name.upper(),
                    hetero=group.upper() == "HETATM",
                    segment=label_chain,
                    segid="",
                    rows=rows,
                    label_number=int(label_number) if label_number.isdigit() else None,
                )
            )
        return groups

    def _place(self, row: int) -> str:
        serial = self._columns.get("id")
        return f"atom_site row {row + 1}" + (f" (atom {serial[row]})" if serial else "")

    def read_atoms(self, group: Group) -> list[Atom]:
        """The atoms of a group.

        Raises:
            StructureError: A coordinate, occupancy or B-factor is no number.
        """
        xs, ys, zs = (self._columns[f"cartn_{axis}"] for axis in "xyz")
        atoms = []
        for row in group.rows:
            place = self._place(row)
            texts = (self._without_error(xs[row]), self._without_error(ys[row]), self._without_error(zs[row]))
            atoms.append(
                Atom(
                    name=self._names[row],
                    altloc=self._altlocs[row],
                    position=position(texts, _AXES, self.path, place),
                    occupancy=self._optional("occupancy", row, 1.0),
                    b_factor=self._optional("b_iso_or_equiv", row, 0.0),
                    place=place,
                )
            )
        return atoms

    @staticmethod
    def _without_error(value: str) -> str:
        """`1.234(5)` is 1.234."""
        return _UNCERTAINTY.sub("", value) if value[-1:] == ")" else value

    def _optional(self, tag: str, row: int, default: float) -> float:
        values = self._columns.get(tag)
        if values is None or values[row] in _ABSENT:
            return default
        value = number_or_none(self._without_error(values[row]))
        if value is None:
            raise StructureError(
                f"{self.path}: {self._place(row)}: {tag} is '{values[row]}', which is no number; correct it or write ?"
            )
        return value

    def read_number(self, group: Group) -> int:
        """The author's number of a group's residue.

        Raises:
            StructureError: It is missing or not a number.
        """
        if re.fullmatch(r"-?\d+", group.number):
            return int(group.number)
        shown = f"'{group.number}'" if group.number else "missing"
        raise StructureError(f"{self.path}: {self._place(group.rows[0])}: auth_seq_id is {shown}, not a number")

    def entities(self) -> list[str]:
        """Entity of every row."""
        return self.column("label_entity_id")


def _rows(path: Path, block: gemmi.cif.Block, category: str, *tags: str) -> list[list[str]]:
    """Rows of a category, plain; tags that are not there give empty strings."""
    table = _category(path, block, category)
    places = {tag.split(".", 1)[1].lower(): place for place, tag in enumerate(table.tags)}
    wanted = [places.get(tag.lower()) for tag in tags]
    return [["" if place is None else _plain(row[place]) for place in wanted] for row in table]


def _read_entities(block: gemmi.cif.Block, table: Table, sites: _Sites) -> None:
    """Which groups belong to a polypeptide, and the full sequence of each chain."""
    poly = _rows(table.path, block, "_entity_poly.", "entity_id", "type", "pdbx_seq_one_letter_code_can")
    kinds = {entity: kind.lower() for entity, kind in _rows(table.path, block, "_entity.", "id", "type")}
    peptides = {row[0] for row in poly if "peptide" in row[1].lower() and "nucleic" not in row[1].lower()}
    # A polymer of unstated type is judged by its residues; only a stated type decides.
    undecided = {row[0] for row in poly if not row[1]}

    # Residues of each entity, one per place: the first where a place is heterogeneous.
    sequences: dict[str, dict[int, str]] = {}
    for entity, number, name in _rows(table.path, block, "_entity_poly_seq.", "entity_id", "num", "mon_id"):
        if number.isdigit():
            sequences.setdefault(entity, {}).setdefault(int(number), name.upper())
    full = {entity: [names[i] for i in sorted(names)] for entity, names in sequences.items()}
    for entity, _, letters in poly:
        if entity not in full and letters:
            full[entity] = [ONE_TO_THREE.get(letter, "UNK") for letter in "".join(letters.split()).upper()]

    entities = sites.entities()
    for group in table.groups:
        entity = entities[group.rows[0]]
        if poly and entity and entity not in undecided:
            group.in_polymer = entity in peptides
        elif kinds.get(entity) in ("non-polymer", "water", "branched", "macrolide"):
            group.in_polymer = False
        if group.in_polymer is not False and entity in full:
            table.seqres.setdefault(group.chain, full[entity])

    # What modified residues derive from: the file's own components, else the canonical sequence.
    for name, parent in _rows(table.path, block, "_chem_comp.", "id", "mon_nstd_parent_comp_id"):
        if parent:
            table.parents[name.upper()] = parent.upper()
    for name, parent in _rows(table.path, block, "_pdbx_struct_mod_residue.", "label_comp_id", "parent_comp_id"):
        if parent:
            table.parents.setdefault(name.upper(), parent.upper())
    for entity, _, letters in poly:
        canonical = "".join(letters.split()).upper()
        names = full.get(entity, [])
        if entity in peptides and len(canonical) == len(names):  # else a residue stands for several letters
            for name, letter in zip(names, canonical, strict=True):
                if name not in THREE_TO_ONE and letter in ONE_TO_THREE and letter != "X":
                    table.parents.setdefault(name, ONE_TO_THREE[letter])


def _read_header(block: gemmi.cif.Block, table: Table) -> None:
    """Resolution and release date."""
    for tag in ("_refine.ls_d_res_high", "_em_3d_reconstruction.resolution", "_reflns.d_resolution_high"):
        for value in block.find_values(tag):
            resolution = number_or_none(_plain(value))
            if table.resolution is None and resolution is not None and resolution > 0:
                table.resolution = resolution
    # The earliest revision is the release; the second category is that of files before 2017.
    dates = _rows(table.path, block, "_pdbx_audit_revision_history.", "revision_date")
    dates = dates or _rows(table.path, block, "_database_PDB_rev.", "date")
    stated = sorted(row[0] for row in dates if re.fullmatch(r"\d{4}-\d\d-\d\d", row[0]))
    table.release_date = stated[0] if stated else None
