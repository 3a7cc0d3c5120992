"""From the name of an edition, or a folder, to a folder of targets."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from protfold_peft.data.casp.assemble import (
    Assembled,
    Known,
    assemble,
    domains_of,
    entries_of,
    known_of_folder,
    release_date,
    unpack,
)
from protfold_peft.data.casp.fetch import Download, fetch_all
from protfold_peft.data.casp.sources import (
    ARCHIVE,
    DOMAINS,
    FASTA,
    LIST,
    PDB_ENTRY,
    PDB_FILE,
    TARGETS,
    Source,
)
from protfold_peft.errors import DataError, SequenceError, StructureError
from protfold_peft.runtime import LOGGER
from protfold_peft.structure import Structure, read_structure, write_pdb
from protfold_peft.structure.fasta import read_fasta

# Beside the targets, so that they are a folder of structures and nothing else.
DOWNLOADS = "downloads"
_DATE = "entry"


def from_folder(folder: Path, out: Path) -> Assembled:
    """Targets of a local folder of structures.

    Raises:
        DataError: As `known_of_folder` and `assemble`.
    """
    try:
        files, known = known_of_folder(folder)
    except StructureError as error:
        raise DataError(f"{error} (--from)") from error
    return assemble(files, known, out)


def from_casp(
    sources: Sequence[Source],
    out: Path,
    *,
    tries: int = 5,
    pause: float = 1.0,
    accept_changes: bool = False,
    entry_url: str | None = PDB_ENTRY,
) -> Assembled:
    """Download an edition of CASP into `OUT.downloads` and lay it out as targets in `OUT`.

    Args:
        sources: From `source_of`.
        out: The folder.
        tries: As in `fetch_all`.
        pause: As in `fetch_all`.
        accept_changes: As in `fetch_all`.
        entry_url: Where the PDB tells of an entry, with `{id}`; None: release dates are not asked for.

    Raises:
        DataError: A needed file cannot be had, or no target can be made.
    """
    folder = out.with_name(f"{out.name}.{DOWNLOADS}")
    have = fetch_all(sources, folder, tries=tries, pause=pause, accept_changes=accept_changes)
    known = _known(sources, have, folder)
    if entry_url is not None and known.entries:
        known = replace(known, dates=_dates(known.entries, folder, entry_url, tries=tries, pause=pause))
    with tempfile.TemporaryDirectory() as unpacked:
        files = []
        for place, source in enumerate(source for source in sources if source.kind == ARCHIVE):
            files += unpack(folder / source.name, Path(unpacked) / str(place))
        return assemble(whole_only_where_no_domain(_named_as_domains(files, known)), known, out)


def _named_as_domains(files: Sequence[Path], known: Known) -> list[Path]:
    """The files; a whole target that the page of domains knows as one domain takes that one's name."""
    found = []
    for path in files:
        name = path.name.rpartition(".")[0]
        if "-D" not in name and f"{name}-D1" in known.classes and f"{name}-D2" not in known.classes:
            path = path.rename(path.with_name(f"{name}-D1{path.suffix}"))
        found.append(path)
    return found


def whole_only_where_no_domain(files: Sequence[Path]) -> list[Path]:
    """The files without whole targets of which there are domains."""
    cut = {path.name.rpartition("-D")[0] for path in files if "-D" in path.name}
    return [path for path in files if "-D" in path.name or path.name.rpartition(".")[0] not in cut]


def _known(sources: Sequence[Source], have: Mapping[str, Download], folder: Path) -> Known:
    classes: dict[str, str] = {}
    ranges: dict[str, str] = {}
    entries: dict[str, str] = {}
    sequences: dict[str, str] = {}
    for source in sources:
        if source.name not in have:
            continue
        path = folder / source.name
        if source.kind == DOMAINS:
            classes, ranges = domains_of(path.read_text(encoding="utf-8", errors="replace"))
            if not classes:
                LOGGER.warning("%s: no domain was found in this page; classes and ranges stay unknown", path)
        elif source.kind == LIST:
            entries = entries_of(path.read_text(encoding="utf-8", errors="replace"))
        elif source.kind == FASTA:
            try:
                records = read_fasta(path)
            except SequenceError as error:
                raise DataError(str(error)) from error
            sequences |= {one.header.split()[0]: one.sequence for one in records if one.header.split()}
    return Known(classes, ranges, entries, {}, sequences)


def _dates(entries: Mapping[str, str], folder: Path, url: str, *, tries: int, pause: float) -> dict[str, str]:
    wanted = sorted(set(entries.values()))
    # What the PDB tells of an entry changes often, and only its date is used: a changed answer is taken.
    sources = [Source(f"{_DATE}_{one}.json", url.format(id=one), TARGETS, needed=False) for one in wanted]
    have = fetch_all(sources, folder, tries=tries, pause=pause, accept_changes=True)
    return {
        one: release_date((folder / source.name).read_text(encoding="utf-8"))
        for one, source in zip(wanted, sources)
        if source.name in have
    }


def from_cameo(
    source: Source,
    out: Path,
    *,
    tries: int = 5,
    pause: float = 1.0,
    accept_changes: bool = False,
    file_url: str = PDB_FILE,
) -> Assembled:
    """Download CAMEO's targets of a period, each the chain of a PDB entry, and lay them out in `OUT`.

    Args:
        source: From `cameo_source`.
        out: The folder.
        tries: As in `fetch_all`.
        pause: As in `fetch_all`.
        accept_changes: As in `fetch_all`.
        file_url: Where the PDB has an entry's mmCIF file, with `{id}`.

    Raises:
        DataError: The list or every structure cannot be had or read.
    """
    folder = out.with_name(f"{out.name}.{DOWNLOADS}")
    fetch_all([source], folder, tries=tries, pause=pause, accept_changes=accept_changes)
    chains = chains_of_cameo((folder / source.name).read_text(encoding="utf-8"), str(folder / source.name))
    files = [
        Source(f"{entry}.cif.gz", file_url.format(id=entry.upper()), ARCHIVE, needed=False)
        for entry in sorted({entry for entry, _ in chains})
    ]
    have = fetch_all(files, folder, tries=tries, pause=pause, accept_changes=accept_changes)
    with tempfile.TemporaryDirectory() as cut:
        written = []
        dates: dict[str, str] = {}
        for entry, chain in chains:
            if f"{entry}.cif.gz" not in have:
                continue
            path = Path(cut) / f"{entry}_{chain}.pdb"
            try:
                structure = read_structure(folder / f"{entry}.cif.gz")
                one = replace(structure.chain(chain), id="A")
                write_pdb(Structure(name=path.stem, chains=(one,)), path)
            except (StructureError, KeyError) as error:
                LOGGER.warning("left out: %s chain %s: %s", entry, chain, error)
                continue
            dates[entry] = structure.release_date or ""
            written.append(path)
        known = Known(entries={path.stem: path.stem.partition("_")[0] for path in written}, dates=dates)
        return assemble(written, known, out)


def chains_of_cameo(text: str, where: str) -> list[tuple[str, str]]:
    """PDB id and chain of every target in CAMEO's answer, sorted.

    Raises:
        DataError: It has another form.
    """
    try:
        rows = json.loads(text)["aaData"]
        found = {(str(row["pdbid"]).lower(), str(row["pdbid_chain"])) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: is not a list of CAMEO's targets: {error!r}; the form may have changed") from error
    return sorted(pair for pair in found if re.fullmatch(r"[0-9][a-z0-9]{3}", pair[0]) and pair[1])
