"""Real chains to compare with, made ones for what real ones lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protfold_peft.errors import StructureError
from protfold_peft.structure import Chain, Structure, find_structure_files, read_structure

EXAMPLES = find_structure_files(Path(__file__).resolve().parents[2] / "structures")


@pytest.fixture
def read_pdb(tmp_path: Path) -> Callable[..., Structure]:
    """Write lines to a PDB file and read it."""

    def read(lines: Sequence[str] | str, *, name: str = "made.pdb", end: str = "\n", **options: object) -> Structure:
        path = tmp_path / name
        text = lines if isinstance(lines, str) else end.join([*lines, ""])
        path.write_bytes(text.encode("latin-1"))
        return read_structure(path, **options)  # type: ignore[arg-type]

    return read


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> Path:
    """Each example structure of the repository in turn."""
    return request.param


@pytest.fixture(scope="session")
def made_structure() -> Structure:
    """Two chains with what is awkward to write: insertion codes, negative numbers, UNK, MSE, missing atoms."""
    rng = np.random.default_rng(7)

    def chain(
        chain_id: str, names: Sequence[str], letters: str, numbers: Sequence[int], codes: str, **full: object
    ) -> Chain:
        n = len(names)
        mask = np.zeros((n, 37), dtype=bool)
        mask[:, :5] = True
        mask[-1, 3] = False
        positions = np.where(mask[..., None], rng.normal(scale=30.0, size=(n, 37, 3)), 0.0).round(3)
        return Chain(
            id=chain_id,
            sequence=letters,
            residue_names=tuple(names),
            residue_numbers=np.array(numbers),
            insertion_codes=tuple(code.strip() for code in codes),
            atom_positions=positions,
            atom_mask=mask,
            b_factors=np.where(mask, rng.uniform(0, 100, size=(n, 37)), 0.0).round(2),
            **full,
        )

    first = chain(
        "A",
        ["MSE", "ALA", "UNK", "TRP", "SER", "VAL"],
        "MAXWSV",
        [-3, -2, 5, 5, 5, 6],
        "   AB ",
        seqres="GMAXWKSV",
        seqres_index=np.array([1, 2, 3, 4, 6, 7]),
    )
    second = chain("b", ["LEU", "LYS", "ARG", "GLU"], "LKRE", [9996, 9997, 9998, 9999], "    ")
    return Structure(name="made", chains=(first, second))


@pytest.fixture
def refused(read_pdb: Callable[..., Structure], tmp_path: Path) -> Callable[..., str]:
    """The message with which these lines are refused: one line that names the file."""

    def read(lines: Sequence[str] | str, **options: Any) -> str:
        with pytest.raises(StructureError) as caught:
            read_pdb(lines, **options)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(str(tmp_path))
        return message

    return read
