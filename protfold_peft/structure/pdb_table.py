"""PDB text into groups of rows: fixed columns, models, TER, and the header records that matter.

Every record is checked here, before any value is used, so that an error can name the line. Serial numbers (columns
7-11) are not read: they overflow, wrap around, or are hexadecimal or hybrid-36, and nothing depends on them.
"""

from __future__ import annotations

import re
from pathlib import Path

from protfold_peft.errors import StructureError
from protfold_peft.structure.components import four_letter_name
from protfold_peft.structure.records import Atom, Group, Table, number_or_none, position

# The last column of z: a shorter line has lost part of its coordinates.
_LAST_COORDINATE_COLUMN = 54
_AXES = ("x (columns 31-38)", "y (columns 39-46)", "z (columns 47-54)")
_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"
_HYBRID_36 = re.compile(r"[A-Z][0-9A-Z]{3}|[a-z][0-9a-z]{3}")


def read_pdb_table(path: Path, text: str, model: int | None) -> Table:
    """Groups of rows of one model.

    Args:
        path: For error messages.
        text: The file, lines ended by `\\n`.
        model: Number in the MODEL record; None for the first model that has atoms.

    Raises:
        StructureError: A line is cut short, or there is no such model.
    """
    lines = text.split("\n")
    body = _Body(path, model)
    for index, line in enumerate(lines):
        head = line[:4]
        if head == "ATOM" or head == "HETA":
            body.atom(index, line)
        elif head == "TER" or head == "TER ":
            body.ter()
        elif head == "MODE":
            body.start_model(line)
        elif head == "ENDM":
            body.end_model()
        elif head == "END" or head == "END ":
            body.end(index)
    body.check(model)
    body.notes.extend(_shorten_names(body.groups))

    def read_atoms(group: Group) -> list[Atom]:
        return [_read_atom(path, lines, row) for row in group.rows]

    def read_number(group: Group) -> int:
        return _residue_number(path, group)

    table = Table(
        path, body.groups, read_atoms, read_number, 1 if body.taken is None else body.taken, max(1, len(body.numbers))
    )
    table.ters = body.ters
    table.notes.extend(body.notes)
    _read_header(lines, table)
    return table


class _Body:
    """Walks through the coordinate section and collects the groups of the wanted model."""

    def __init__(self, path: Path, wanted: int | None) -> None:
        self.path = path
        self.wanted = wanted
        self.groups: list[Group] = []
        self.numbers: list[int] = []  # of the models that have atoms
        self.taken: int | None = None
        self.notes: list[str] = []
        self._announced: int | None = None  # number in a MODEL record whose atoms have not come yet
        self._inside = False
        self._taking = False
        self._ended_at: int | None = None
        self.ters: dict[str, int] = {}
        self._chain: str | None = None
        self._key = ""
        self._rows: list[int] = []

    def atom(self, index: int, line: str) -> None:
        """An ATOM or HETATM record.

        Raises:
            StructureError: It is cut short.
        """
        if not self._inside:
            self._open_model()
        if self._ended_at is not None:
            # What follows END without a MODEL record belongs to no model: readers in use stop there as well.
            if self._ended_at >= 0:
                self.notes.append(f"line {index + 1}: atoms after the END record on line {self._ended_at + 1} left out")
                self._ended_at = -1
            return
        if len(line) < _LAST_COORDINATE_COLUMN:
            raise StructureError(
                f"{self.path}: line {index + 1} is cut short ({len(line)} of at least {_LAST_COORDINATE_COLUMN} "
                "columns); the file is truncated or damaged"
            )
        if not self._taking:
            return
        key = line[:1] + line[17:27] + line[72:76]
        if key == self._key:
            self._rows.append(index)
            return
        self._key, self._rows = key, [index]
        # Two-character chain ids reach into column 21, which the format leaves blank.
        self._chain = chain = line[20:22].strip()
        self.groups.append(
            Group(
                chain=chain,
                chain_columns=line[20:22],
                number=line[22:26],
                icode=line[26].strip(),
                name=line[17:20].strip().upper(),
                hetero=line[0] == "H",
                segment=str(self.ters.get(chain, 0)),
                segid=line[72:76].strip(),
                rows=self._rows,
            )
        )

    def ter(self) -> None:
        """A TER record: what follows under the same chain id is another segment."""
        if self._taking and self._chain is not None:
            self.ters[self._chain] = self.ters.get(self._chain, 0) + 1
        self._key = ""

    def start_model(self, line: str) -> None:
        """A MODEL record; the model begins with its first atom."""
        fields = line[5:].split()
        if line[:6].rstrip() != "MODEL":
            return
        self.end_model()
        self._ended_at = None
        self._announced = int(fields[0]) if fields and fields[0].lstrip("-").isdigit() else None

    def end_model(self) -> None:
        """An ENDMDL record."""
        self._inside = self._taking = False
        self._key = ""

    def end(self, index: int) -> None:
        """An END record, on the line `index`."""
        self._ended_at = index
        self._key = ""

    def _open_model(self) -> None:
        """The first atom of a model: is it the one that is wanted?"""
        self._inside = True
        if self._ended_at is not None:
            return
        number = self._announced if self._announced is not None else (self.numbers[-1] + 1 if self.numbers else 1)
        self._announced = None
        self._taking = self.taken is None and self.wanted in (None, number)
        if self._taking:
            self.taken = number
            self._chain = None
        elif number == self.taken:
            self.notes.append(f"model {number} occurs more than once: the first is taken")
        self.numbers.append(number)

    def check(self, wanted: int | None) -> None:
        """At the end of the file.

        Raises:
            StructureError: There are no atoms, or the wanted model is not there.
        """
        if not self.numbers:
            raise StructureError(f"{self.path}: there is no ATOM or HETATM record: the file has no coordinates")
        if self.taken is None:
            there = ", ".join(str(number) for number in self.numbers[:10]) + (", ..." if len(self.numbers) > 10 else "")
            raise StructureError(f"{self.path}: there is no model {wanted}; the file has {there}")


def _shorten_names(groups: list[Group]) -> list[str]:
    """Take residue names of four letters for what they are, not for the start of a two-character chain id.

    `NMET A` and `LYSHA` put a letter in column 21. It belongs to the name where every residue of that seeming chain
    makes a known four-letter name with it, and the chain of column 22 exists.
    """
    there = {group.chain_columns for group in groups}
    wide: dict[str, list[Group]] = {}
    for group in groups:
        if group.chain_columns[0] != " ":
            wide.setdefault(group.chain_columns, []).append(group)
    notes = []
    for columns, members in wide.items():
        names = [four_letter_name(group.name + columns[0]) for group in members]
        if " " + columns[1] not in there or None in names:
            continue
        for group, name in zip(members, names, strict=True):
            notes.append(f"residue {group.number.strip()}: {group.name}{columns[0]} read as {name}")
            group.chain, group.name = columns[1].strip(), name or group.name
    return notes


def _read_atom(path: Path, lines: list[str], row: int) -> Atom:
    line = lines[row]
    place = f"line {row + 1}"
    return Atom(
        name=line[12:16].strip(),
        altloc=line[16].strip(),
        position=position((line[30:38], line[38:46], line[46:54]), _AXES, path, place),
        occupancy=_optional(line[54:60], 1.0, "the occupancy (columns 55-60)", path, place),
        b_factor=_optional(line[60:66], 0.0, "the B-factor (columns 61-66)", path, place),
        place=place,
    )


def _optional(text: str, default: float, what: str, path: Path, place: str) -> float:
    """A number that may be left blank."""
    if not text or text.isspace():
        return default
    value = number_or_none(text)
    if value is None:
        raise StructureError(f"{path}: {place}: {what} is '{text.strip()}', which is no number; correct or blank it")
    return value


def _residue_number(path: Path, group: Group) -> int:
    text = group.number.strip()
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if _HYBRID_36.fullmatch(text):
        # Capitals count on from 9999, small letters from the last capital.
        first = 10 * 36**3
        offset = 10**4 if text[0].isupper() else 10**4 + 26 * 36**3
        return int(text, 36) - first + offset
    what = f"'{text}', which is no number" if text else "blank"
    raise StructureError(f"{path}: line {group.rows[0] + 1}: the residue number (columns 23-26) is {what}; correct it")


def _read_header(lines: list[str], table: Table) -> None:
    """SEQRES, MODRES, resolution and release date, as far as they are there and can be read."""
    for line in lines:
        head = line[:6]
        if head == "SEQRES":
            # Column 11 holds the first character of a two-character chain id; 73-80 an id in old files.
            table.seqres.setdefault(line[10:12].strip(), []).extend(name.upper() for name in line[19:70].split())
        elif head == "MODRES":
            table.parents[line[12:15].strip().upper()] = line[24:27].strip().upper()
        elif head == "REMARK" and table.resolution is None and line[6:10].strip() == "2":
            found = re.search(r"RESOLUTION\.\s+(\d+\.\d+)", line)
            table.resolution = float(found.group(1)) if found else None
        elif head == "REVDAT" and line[7:10].strip() == "1":
            table.release_date = table.release_date or _iso_date(line[13:22])


def _iso_date(text: str) -> str | None:
    """`27-MAR-98` as `1998-03-27`; the archive opened in 1971, so 71..99 are of the last century."""
    found = re.fullmatch(r"(\d\d)-([A-Z]{3})-(\d\d)", text.strip().upper())
    if not found or found.group(2) not in _MONTHS.split():
        return None
    year = int(found.group(3))
    month = _MONTHS.split().index(found.group(2)) + 1
    return f"{1900 + year if year >= 71 else 2000 + year}-{month:02d}-{found.group(1)}"
