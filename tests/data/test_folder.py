"""A folder of structure files, good and bad."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from protfold_peft.data import read_chains
from protfold_peft.errors import StructureError

ATOM = (
    "ATOM  {serial:5d}  {name:<3s} {residue} {chain}{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {e}"
)


def pdb(n_residues: int, chains: str = "A") -> str:
    """Bonded residues on a zigzag, alternating alanine and glycine."""
    lines, serial = [], 0
    for offset, chain in enumerate(chains):
        for i in range(n_residues):
            for name, shift in (("N", -1.2), ("CA", 0.0), ("C", 1.25)):
                serial += 1
                y = 0.8 * ((i + (name == "CA")) % 2) + 30 * offset
                lines.append(
                    ATOM.format(
                        serial=serial,
                        name=name,
                        residue=("ALA", "GLY")[i % 2],
                        chain=chain,
                        number=i + 1,
                        x=3.7 * i + shift,
                        y=y,
                        z=0.1,
                        e=name[0],
                    )
                )
        lines.append("TER")
    return "\n".join([*lines, "END", ""])


def test_bad_files_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    (tmp_path / "b_two.pdb").write_text(pdb(12, "AB"))
    (tmp_path / "a_one.pdb").write_text(pdb(15))
    (tmp_path / "c_broken.pdb").write_text(pdb(15).replace("   0.100", "     nan", 1))
    (tmp_path / "d_short.pdb").write_text(pdb(3))
    (tmp_path / "e_long.pdb").write_text(pdb(40))
    (tmp_path / "notes.txt").write_text("nothing to do with it")
    folder = read_chains(tmp_path, min_length=10, max_length=30)
    assert [chain.name for chain in folder.chains] == ["a_one", "b_two_A", "b_two_B"]
    assert [len(chain) for chain in folder.chains] == [15, 12, 12]
    assert folder.chains[0].sequence == "AGAGAGAGAGAGAGA"
    assert [skipped.name for skipped in folder.skipped if not skipped.wanted] == ["c_broken.pdb"]
    reasons = {skipped.name: skipped.reason for skipped in folder.skipped}
    assert set(reasons) == {"c_broken.pdb", "d_short", "e_long"}
    assert "c_broken.pdb" in reasons["c_broken.pdb"]
    assert reasons["d_short"].endswith("d_short has 3 residues with N, CA and C, fewer than 10")
    assert reasons["e_long"].endswith("e_long has 40 residues, more than 30")


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "one.pdb").write_text(pdb(12))
    (tmp_path / "one.ent").write_text(pdb(12))
    assert sorted(chain.name for chain in read_chains(tmp_path).chains) == ["one", "one_one.pdb"]


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="no such folder"):
        read_chains(tmp_path / "absent")
    with pytest.raises(StructureError, match=str(tmp_path)):
        read_chains(tmp_path)
    (tmp_path / "broken.pdb").write_text("<html>404</html>")
    with pytest.raises(StructureError, match=r"none of its 1 structure files.*broken\.pdb"):
        read_chains(tmp_path)


def test_the_example_structures_can_all_be_used(structures: Path, tmp_path: Path) -> None:
    files = [path for path in structures.iterdir() if path.suffix in {".pdb", ".cif"}]
    folder = read_chains(structures)
    assert len(folder.chains) >= len(files) > 0
    assert folder.skipped == ()
    # The same chains wherever they lie, in the same order.
    shutil.copytree(structures, tmp_path / "copy")
    assert [c.name for c in read_chains(tmp_path / "copy").chains] == [c.name for c in folder.chains]
