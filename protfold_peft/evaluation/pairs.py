"""Which model is scored against which reference: two files, folders matched by name, or a table."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.files import named_in
from protfold_peft.structure import find_structure_files
from protfold_peft.structure.source import short_name

_COLUMNS = ("model", "reference", "model_chain", "reference_chain")


@dataclass(frozen=True)
class Pair:
    """A model's file and the file of its reference.

    Attributes:
        model: File as the user would name it.
        reference: File as the user would name it.
        model_chain: The chain to score; None: all.
        reference_chain: The chain to score against; None: all.
        error: Why the pair cannot be scored, known before anything is read.
    """

    model: Path
    reference: Path
    model_chain: str | None = None
    reference_chain: str | None = None
    error: str = ""


@dataclass(frozen=True)
class PairSet:
    """Pairs in the order of the rows to come, and sentences on the files left over."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[str, ...] = ()


def pair_paths(
    model: Path, reference: Path, *, model_chain: str | None = None, reference_chain: str | None = None
) -> PairSet:
    """Pairs of two files, of a folder and a file (every model against it), or of folders by name.

    Names are those of the files without `.gz` and the format's suffix: `T1024.pdb` goes with `T1024.cif.gz`.

    Raises:
        ProtfoldError: Something is not there, or no name is found on both sides.
    """
    for path, what in ((model, "model"), (reference, "reference")):
        if not path.exists():
            raise ProtfoldError(f"{path}: there is no such file or folder (the {what})")
    if not reference.is_dir():
        models = find_structure_files(model) if model.is_dir() else [model]
        return PairSet(tuple(Pair(path, reference, model_chain, reference_chain) for path in models))
    models_by_name = _by_name(find_structure_files(model) if model.is_dir() else [model])
    references_by_name = _by_name(find_structure_files(reference))
    pairs = []
    for name, files in models_by_name.items():
        for path in files:
            partners = references_by_name.get(name, [])
            if partners:
                error = _ambiguous(name, files, partners)
                pairs.append(Pair(path, partners[0], model_chain, reference_chain, error))
    if not pairs:
        some = ", ".join(list(models_by_name)[:3])
        others = ", ".join(list(references_by_name)[:3])
        raise ProtfoldError(
            f"no file of {model} has the name of one of {reference} (there are {some} and {others}); rename them, or "
            "name the pairs in a table with --pairs"
        )
    unmatched = [
        f"{path}: no reference is called {name}"
        for name, files in models_by_name.items()
        if name not in references_by_name
        for path in files
    ]
    if model.is_dir():
        unmatched += [
            f"{path}: no model is called {name}"
            for name, files in references_by_name.items()
            if name not in models_by_name
            for path in files
        ]
    return PairSet(tuple(pairs), tuple(unmatched))


def _by_name(files: list[Path]) -> dict[str, list[Path]]:
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_name[short_name(path)].append(path)
    return dict(by_name)


def _ambiguous(name: str, models: list[Path], references: list[Path]) -> str:
    for files, what in ((references, "references"), (models, "models")):
        if len(files) > 1:
            return f"{len(files)} {what} are called {name} ({', '.join(path.name for path in files)}): keep one"
    return ""


def read_pair_table(path: Path, *, model_chain: str | None = None, reference_chain: str | None = None) -> PairSet:
    """Pairs of a CSV or TSV file with the columns `model`, `reference` and, if wanted, the chain of either.

    A file is looked for from the table's folder and, if it is not there, from the current one. A blank chain means
    the chain given here, None for all.

    Raises:
        ConfigError: The table cannot be read, lacks a column or has one too many, or has no row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file (the table of pairs)") from None
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: the table of pairs cannot be read: {what}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ConfigError(f"{path}: the table of pairs is empty; its first line is model,reference")
    delimiter = "\t" if "\t" in lines[0] else ";" if ";" in lines[0] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    header = [name.lower() for name in rows[0]]
    _check_header(path, header)
    if len(rows) == 1:
        raise ConfigError(f"{path}: the table has a header and no pair")
    pairs = [_table_pair(path, number, header, row) for number, row in enumerate(rows[1:], start=1)]
    return PairSet(
        tuple(
            Pair(
                pair.model,
                pair.reference,
                pair.model_chain if pair.model_chain is not None else model_chain,
                pair.reference_chain if pair.reference_chain is not None else reference_chain,
                pair.error,
            )
            for pair in pairs
        )
    )


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in _COLUMNS[:2] if name not in header]
    if missing:
        raise ConfigError(
            f"{path}: the first line ({', '.join(header[:6])}) has no column {' and no '.join(missing)}; the columns "
            f"are {', '.join(_COLUMNS)}, the last two if wanted"
        )
    twice = sorted({name for name in header if name in _COLUMNS and header.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: column {twice[0]} occurs twice")


def _table_pair(path: Path, number: int, header: list[str], row: list[str]) -> Pair:
    cells = dict(zip(header, row, strict=False))
    model, reference = cells.get("model", ""), cells.get("reference", "")
    error = ""
    if len(row) > len(header):
        error = f"{path}: pair {number} has {len(row)} cells, the first line {len(header)}"
    elif not model or not reference:
        error = f"{path}: pair {number} names no {'model' if not model else 'reference'}"
    return Pair(
        named_in(path, model) if model else Path(),
        named_in(path, reference) if reference else Path(),
        cells.get("model_chain") or None,
        cells.get("reference_chain") or None,
        error,
    )
