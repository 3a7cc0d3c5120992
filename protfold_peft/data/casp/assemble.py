"""From downloaded files, or any folder, to a folder of targets: a structure each, sequences, and a manifest.

`manifest.tsv` has for every domain its class, its official range in the target, length, PDB entry, release date and
the SHA-256 of its file, as far as they are known; `targets.fasta` the sequences of whole targets.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from protfold_peft.data.casp.fetch import sha256
from protfold_peft.errors import DataError, StructureError
from protfold_peft.files import replacing_folder, write_text
from protfold_peft.runtime import LOGGER
from protfold_peft.structure import find_structure_files, read_structure
from protfold_peft.structure.fasta import is_fasta_name, read_fasta

COLUMNS = ("target", "class", "range", "length", "resolved", "pdb_id", "release_date", "file", "sha256")
MANIFEST, SEQUENCES = "manifest.tsv", "targets.fasta"
CLASSES = ("FM", "FM/TBM", "TBM-hard", "TBM-easy", "TBM", "TBM/FM", "FM-sp", "MultiDom")
_DOMAIN = re.compile(r"\bT\d{4}(?:s\d+|v\d+|o)?(?:-D\d+)?\b")
_RANGE = re.compile(r"\b\d+-\d+(?:\s*,\s*\d+-\d+)*\b")
_PDB_ID = re.compile(r"\b[1-9][a-z0-9]{3}\b", re.IGNORECASE)


@dataclass(frozen=True)
class Known:
    """What pages and tables say of domains and targets.

    Attributes:
        classes: By domain.
        ranges: By domain, as `2-50,100-150`.
        entries: PDB id by target.
        dates: Release date by PDB id.
        sequences: By target.
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)
    dates: Mapping[str, str] = field(default_factory=dict)
    sequences: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Assembled:
    """What came of it.

    Attributes:
        targets: Rows of the manifest.
        skipped: Files that cannot be targets, and why.
    """

    targets: tuple[Mapping[str, str], ...]
    skipped: tuple[str, ...]


def assemble(files: Iterable[Path], known: Known, out: Path) -> Assembled:
    """Lay structures out as targets; an older folder is replaced once the new one is whole.

    Args:
        files: Structures, one domain each; of two of one name the first counts.
        known: What is known of them.
        out: The folder.

    Raises:
        DataError: None of the files can be a target, or `out` holds something else.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise DataError(f"{out} holds something that is no folder of targets: name another with --out")
    rows: dict[str, dict[str, str]] = {}
    skipped = []
    with replacing_folder(out) as folder:
        for path in files:
            name = path.name.removesuffix(".gz").rpartition(".")[0]
            if name in rows:
                continue
            try:
                structure = read_structure(path)
            except StructureError as error:
                skipped.append(f"{path.name}: {error}")
                continue
            if len(structure.chains) != 1:
                skipped.append(f"{path.name}: has {len(structure.chains)} chains, a target is one")
                continue
            chain = structure.chains[0]
            target = name.rpartition("-D")[0] or name
            entry = known.entries.get(target, "").lower()
            shutil.copyfile(path, folder / path.name)
            rows[name] = {
                "target": name,
                "class": known.classes.get(name, ""),
                "range": known.ranges.get(name, ""),
                "length": str(_length(known.ranges.get(name, "")) or len(chain.seqres or chain.sequence)),
                "resolved": str(len(chain)),
                "pdb_id": entry,
                "release_date": known.dates.get(entry, "") or structure.release_date or "",
                "file": path.name,
                "sha256": sha256(folder / path.name),
            }
        if not rows:
            raise DataError(f"no target can be made for {out}" + (f": {skipped[0]}" if skipped else ""))
        ordered = tuple(rows[name] for name in sorted(rows))
        write_text(folder / MANIFEST, manifest_text(ordered))
        wanted = {name.rpartition("-D")[0] or name for name in rows} | set(rows)
        sequences = {name: sequence for name, sequence in known.sequences.items() if name in wanted}
        if sequences:
            write_text(folder / SEQUENCES, "".join(f">{name}\n{one}\n" for name, one in sorted(sequences.items())))
    for reason in skipped:
        LOGGER.warning("left out: %s", reason)
    return Assembled(ordered, tuple(skipped))


def manifest_text(rows: Iterable[Mapping[str, str]]) -> str:
    """The manifest as tab-separated text."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def unpack(archive: Path, folder: Path) -> list[Path]:
    """The PDB files of an archive, by their own names: nothing is written elsewhere, whatever the archive says.

    Raises:
        DataError: The archive is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for member in packed:
                name = PurePosixPath(member.name).name
                if not member.isfile() or name.startswith(".") or not name.lower().endswith((".pdb", ".cif")):
                    continue
                content = packed.extractfile(member)
                assert content is not None
                with (folder / name).open("wb") as handle:
                    shutil.copyfileobj(content, handle)
                found.append(folder / name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: is damaged: {error}; remove it and run the same command again") from error
    return sorted(found)


def domains_of(page: str) -> tuple[dict[str, str], dict[str, str]]:
    """Classes and ranges of domains, from the tables of the Prediction Center's page.

    A row tells of a domain if a cell names it; its class is a cell that is one of `CLASSES`, its range the first
    `2-50,100-150` of the cells after the name.
    """
    classes: dict[str, str] = {}
    ranges: dict[str, str] = {}
    for cells in _rows_of(page):
        named = [(place, match[0]) for place, cell in enumerate(cells) if (match := _DOMAIN.search(cell))]
        named = [(place, name) for place, name in named if "-D" in name]
        if not named:
            continue
        place, name = named[0]
        kind = next((cell for cell in cells if cell in CLASSES), "")
        after = [cells[place].partition(name)[2], *cells[place + 1 :]]
        span = next((match[0] for cell in after if (match := _RANGE.search(cell))), "")
        if kind:
            classes[name] = kind
        if span:
            ranges[name] = span.replace(" ", "")
    return classes, ranges


def entries_of(table: str) -> dict[str, str]:
    """PDB id by target, from the semicolon-separated list of targets: the id stands at the end of the description."""
    found = {}
    for row in csv.DictReader(io.StringIO(table), delimiter=";"):
        match = _PDB_ID.findall(row.get("Description") or "")
        # Words such as "1abc" are rare in descriptions; where there are several, the last is the entry.
        named = [one.lower() for one in match if re.search(r"[a-z]", one, re.IGNORECASE)]
        if row.get("Target") and named:
            found[row["Target"].strip()] = named[-1]
    return found


def release_date(entry: str) -> str:
    """The ISO date in an answer of the PDB's data service; empty if it has none."""
    try:
        return str(json.loads(entry)["rcsb_accession_info"]["initial_release_date"])[:10]
    except (ValueError, KeyError, TypeError):
        return ""


def known_of_folder(folder: Path) -> tuple[list[Path], Known]:
    """Structures of any folder, and what its manifest and FASTA files say.

    A manifest has a column `target` or `name`, and may have the others of `COLUMNS`, or a `header` as CASP writes it.

    Raises:
        DataError: The folder is not there, or its manifest cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder (--from)")
    columns: dict[str, dict[str, str]] = {name: {} for name in ("class", "range", "pdb_id", "release_date")}
    manifest = folder / MANIFEST
    if manifest.is_file():
        with manifest.open(encoding="utf-8-sig", newline="") as handle:
            for row in csv.DictReader(handle, delimiter="\t"):
                name = row.get("target") or row.get("name")
                if not name:
                    raise DataError(f"{manifest}: there is no column 'target' or 'name', or it is empty")
                for column, values in columns.items():
                    if row.get(column):
                        values[name] = row[column]
                header = re.search(r"\bT\w+:([\d,-]+)", row.get("header") or "")
                if header and name not in columns["range"]:
                    columns["range"][name] = header[1]
    sequences = {
        entry.header.split()[0]: entry.sequence
        for path in sorted(folder.iterdir())
        if is_fasta_name(path) or path.name.endswith(".seq.txt")
        for entry in read_fasta(path)
        if entry.header.split()
    }
    targets = {name: name.rpartition("-D")[0] or name for name in {**columns["pdb_id"], **columns["release_date"]}}
    entries = {targets[name]: entry.lower() for name, entry in columns["pdb_id"].items()}
    dates = {entries[targets[name]]: date for name, date in columns["release_date"].items() if targets[name] in entries}
    known = Known(columns["class"], columns["range"], entries, dates, sequences)
    return find_structure_files(folder), known


def _length(span: str) -> int:
    """Residues of a span such as `1-60,90-120`."""
    pieces = [piece.split("-") for piece in span.split(",") if piece]
    return sum(int(piece[-1]) - int(piece[0]) + 1 for piece in pieces)


def _rows_of(page: str) -> list[list[str]]:
    """The cells of all table rows of a page."""
    parser = _Tables()
    parser.feed(page)
    parser.close()
    return parser.rows


class _Tables(HTMLParser):
    """The texts of the cells of every table row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """A new row, or a new cell of the last row."""
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        """Text of the last cell."""
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())
