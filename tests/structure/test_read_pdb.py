"""What the reader makes of PDB files as people have them: one made file per oddity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from structure.made import atom_line, chain_lines, note, residue_lines

from protfold_peft.structure import Structure

Read = Callable[..., Structure]


def alpha(structure: Structure, chain: int = 0) -> list[list[float]]:
    return structure.chains[chain].atom_positions[:, 1].round(3).tolist()


def test_a_plain_chain(read_pdb: Read) -> None:
    structure = read_pdb([*chain_lines(["GLY", "ALA", "TRP"], start=5), "TER", "END"])
    chain = structure.chains[0]
    assert (chain.id, chain.sequence, chain.residue_names) == ("A", "GAW", ("GLY", "ALA", "TRP"))
    assert chain.residue_numbers.tolist() == [5, 6, 7]
    # Glycine has no CB; the line that claims one is left out and noted.
    assert chain.atom_mask.sum(1).tolist() == [4, 5, 5]
    assert note(structure, "chain A", "CB of GLY 5")
    np.testing.assert_allclose(chain.atom_positions[0, :3, 0], [19.0, 20.2, 21.5])
    assert (chain.atom_positions[~chain.atom_mask] == 0).all()
    assert (chain.b_factors[chain.atom_mask] == 10.0).all()
    assert (structure.name, structure.model, structure.n_models) == ("made", 1, 1)
    assert chain.seqres is None
    assert chain.seqres_index is None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(read_pdb: Read, end: str) -> None:
    assert read_pdb(chain_lines(["ALA"] * 3), end=end).chains[0].sequence == "AAA"


def test_trailing_blanks_cut_off_and_no_newline_at_the_end(read_pdb: Read) -> None:
    assert len(read_pdb("\n".join(line[:54] for line in chain_lines(["ALA"] * 3))).chains[0]) == 3


class TestAlternateLocations:
    def test_most_occupied_for_the_whole_residue(self, read_pdb: Read) -> None:
        lines = [
            *residue_lines(number=1, altloc="A", occupancy=0.4),
            *residue_lines(number=1, altloc="B", occupancy=0.6, shift=(0, 0, 1)),
            *residue_lines(number=2),
        ]
        structure = read_pdb(lines)
        assert alpha(structure) == [[5.0, 0.8, 1.1], [8.8, 0.8, 0.1]]
        assert (structure.chains[0].atom_positions[0, :4, 2] >= 1).all()
        assert note(structure, "chain A", "alternate location", "1 (B of A, B)")

    def test_the_first_when_tied(self, read_pdb: Read) -> None:
        lines = [
            *residue_lines(altloc="B", occupancy=0.5, shift=(0, 0, 1)),
            *residue_lines(altloc="A", occupancy=0.5),
        ]
        assert alpha(read_pdb(lines)) == [[5.0, 0.8, 1.1]]

    def test_ca_decides_where_occupancies_differ_within_a_conformer(self, read_pdb: Read) -> None:
        lines = [
            atom_line("N", altloc="A", occupancy=0.9, xyz=(0, 0, 0.5)),
            atom_line("CA", altloc="A", occupancy=0.4, xyz=(1, 0, 0.5)),
            atom_line("N", altloc="B", occupancy=0.1, xyz=(0, 0, 1.5)),
            atom_line("CA", altloc="B", occupancy=0.6, xyz=(1, 0, 1.5)),
        ]
        structure = read_pdb(lines)
        assert structure.chains[0].atom_positions[0, :2, 2].tolist() == [1.5, 1.5]

    def test_side_chain_only(self, read_pdb: Read) -> None:
        lines = [
            *residue_lines("SER", atoms=("N", "CA", "C", "O")),
            atom_line("CB", "SER", altloc="A", occupancy=0.3, xyz=(1, 1, 1)),
            atom_line("OG", "SER", altloc="A", occupancy=0.3, xyz=(2, 1, 1)),
            atom_line("CB", "SER", altloc="B", occupancy=0.7, xyz=(1, 1, 2)),
            atom_line("OG", "SER", altloc="B", occupancy=0.7, xyz=(2, 1, 2)),
        ]
        chain = read_pdb(lines).chains[0]
        assert chain.atom_mask.sum() == 6
        assert chain.atom_positions[0, [3, 8], 2].tolist() == [2.0, 2.0]

    def test_an_atom_the_taken_conformer_lacks_comes_from_another(self, read_pdb: Read) -> None:
        lines = [*residue_lines(atoms=("N", "CA", "C"), altloc="A", occupancy=0.6)]
        lines += residue_lines(altloc="B", occupancy=0.4, shift=(0, 0, 1))
        chain = read_pdb(lines).chains[0]
        assert chain.atom_mask.sum() == 5
        assert chain.atom_positions[0, :5, 2].round(1).tolist() == [0.0, 0.1, 0.2, 2.3, 1.3]

    def test_a_lone_label_is_no_choice(self, read_pdb: Read) -> None:
        structure = read_pdb(residue_lines(altloc="A", occupancy=0.5))
        assert len(structure.chains[0]) == 1
        assert structure.notes == ()

    def test_blank_and_labelled(self, read_pdb: Read) -> None:
        lines = [*residue_lines(occupancy=0.3), *residue_lines(altloc="A", occupancy=0.7, shift=(0, 0, 1))]
        assert alpha(read_pdb(lines)) == [[5.0, 0.8, 1.1]]

    def test_most_occupied_residue_name(self, read_pdb: Read) -> None:
        """SER in two conformers of 0.3 outweighs PRO of 0.4."""
        lines = [
            *residue_lines("PRO", altloc="A", occupancy=0.4),
            *residue_lines("SER", altloc="B", occupancy=0.3, shift=(0, 0, 1)),
            *residue_lines("SER", altloc="C", occupancy=0.3, shift=(0, 0, 2)),
        ]
        structure = read_pdb(lines)
        assert structure.chains[0].residue_names == ("SER",)
        assert alpha(structure) == [[5.0, 0.8, 1.1]]
        assert note(structure, "residue name", "1 (SER of PRO, SER)")


class TestDuplicates:
    def test_the_same_atom_twice(self, read_pdb: Read) -> None:
        lines = residue_lines()
        structure = read_pdb([*lines, lines[1], *residue_lines(number=2)])
        assert structure.chains[0].atom_mask.sum() == 10
        assert note(structure, "1 repeated atom record")

    def test_one_atom_at_two_places(self, read_pdb: Read) -> None:
        lines = residue_lines()
        structure = read_pdb([*lines, atom_line("O", xyz=(9, 9, 9))])
        assert structure.chains[0].atom_positions[0, 4].tolist() == pytest.approx([6.4, -1.1, 0.3])
        assert note(structure, "O of ALA 1")

    @pytest.mark.parametrize("ter", [["TER"], []])
    def test_a_chain_twice_at_the_same_place(self, read_pdb: Read, ter: list[str]) -> None:
        lines = chain_lines(["ALA", "GLY", "SER"])
        structure = read_pdb([*lines, *ter, *lines, *ter, "END"])
        assert structure.chains[0].sequence == "AGS"
        assert note(structure, "chain A", "more than once")

    @pytest.mark.parametrize("ter", [["TER"], []])
    def test_a_chain_twice_at_different_places_is_refused(
        self, read_pdb: Read, refused: Callable[..., str], ter: list[str]
    ) -> None:
        lines = [*chain_lines(["ALA", "GLY"]), *ter, *chain_lines(["ALA", "GLY"], shift=(0, 0, 30))]
        message = refused(lines)
        assert "chain A residue 1 (ALA)" in message
        assert f"lines 1 and {11 + len(ter)}" in message or f"line {11 + len(ter)}" in message
        assert "chain ids" in message

    def test_two_residues_with_one_number_are_refused(self, read_pdb: Read, refused: Callable[..., str]) -> None:
        message = refused([*residue_lines("ALA"), *residue_lines("GLY", at=5)])
        assert "chain A residue 1" in message
        assert "ALA at line 1" in message

    def test_unlabelled_alternates_of_a_whole_residue(self, read_pdb: Read) -> None:
        lines = [*residue_lines(occupancy=0.4), *residue_lines(occupancy=0.6, shift=(0, 0, 1))]
        structure = read_pdb(lines)
        assert alpha(structure) == [[5.0, 0.8, 1.1]]
        assert note(structure, "given twice")

    def test_atoms_of_a_residue_apart(self, read_pdb: Read) -> None:
        first, second = residue_lines(), residue_lines(number=2)
        structure = read_pdb([*first[:3], *second, *first[3:]])
        assert structure.chains[0].residue_numbers.tolist() == [1, 2]
        assert structure.chains[0].atom_mask.sum() == 10

    def test_interleaved_chains(self, read_pdb: Read) -> None:
        lines = [line for i in (1, 2, 3) for chain in "BA" for line in residue_lines(chain=chain, number=i)]
        structure = read_pdb(lines)
        assert [(chain.id, len(chain)) for chain in structure.chains] == [("B", 3), ("A", 3)]


class TestChainIds:
    def test_blank(self, read_pdb: Read) -> None:
        assert read_pdb(chain_lines(["ALA"], chain=" ")).chains[0].id == ""

    def test_two_characters(self, read_pdb: Read) -> None:
        structure = read_pdb([*chain_lines(["ALA"] * 2, chain="AA"), *chain_lines(["GLY"] * 2, chain="BA")])
        assert [(chain.id, chain.sequence) for chain in structure.chains] == [("AA", "AA"), ("BA", "GG")]

    def test_case_matters(self, read_pdb: Read) -> None:
        structure = read_pdb([*chain_lines(["ALA"], chain="a"), *chain_lines(["GLY"], chain="A")])
        assert [chain.id for chain in structure.chains] == ["a", "A"]

    def test_casp_segment_ids_are_not_chains(self, read_pdb: Read) -> None:
        lines = [line[:72] + "T0953s1 " for line in chain_lines(["ALA"] * 3, chain=" ")]
        structure = read_pdb([*lines[:10], *(line[:72] + "T0953s2 " for line in lines[10:])])
        assert [(chain.id, len(chain)) for chain in structure.chains] == [("", 3)]

    @pytest.mark.parametrize("chain", [" ", "P"])
    def test_segment_ids_tell_colliding_chains_apart(self, read_pdb: Read, chain: str) -> None:
        lines = [
            *chain_lines(["ALA", "GLY"], chain=chain, segid="PROA"),
            *chain_lines(["SER", "THR"], chain=chain, segid="PROB", shift=(0, 0, 30)),
        ]
        structure = read_pdb(lines)
        assert [(one.id, one.sequence) for one in structure.chains] == [("PROA", "AG"), ("PROB", "ST")]
        assert note(structure, "segment identifiers", "PROB")
        assert [one.id for one in read_pdb(lines, chains=["PROB"]).chains] == ["PROB"]

    def test_some_chains_only(self, read_pdb: Read, refused: Callable[..., str]) -> None:
        lines = [line for chain in "ABC" for line in chain_lines(["ALA"], chain=chain)]
        assert [chain.id for chain in read_pdb(lines, chains=["C", "A"]).chains] == ["A", "C"]
        message = refused(lines, chains=["A", "D"])
        assert "'D'" in message
        assert "'A', 'B', 'C'" in message


class TestNumbers:
    def test_negative_insertion_codes_and_backwards(self, read_pdb: Read) -> None:
        places = [(-5, " "), (10, "B"), (10, "A"), (10, " "), (9, " ")]
        lines = [
            line for i, (number, code) in enumerate(places) for line in residue_lines(number=number, icode=code, at=i)
        ]
        chain = read_pdb(lines).chains[0]
        assert chain.residue_numbers.tolist() == [-5, 10, 10, 10, 9]
        assert chain.insertion_codes == ("", "B", "A", "", "")

    @pytest.mark.parametrize(
        ("text", "number"), [("9999", 9999), ("A000", 10000), ("A001", 10001), ("ZZZZ", 1223055), ("a000", 1223056)]
    )
    def test_hybrid_36(self, read_pdb: Read, text: str, number: int) -> None:
        """Values of the format's own description: A000 follows 9999, a000 follows ZZZZ."""
        assert read_pdb(residue_lines(number=text, at=1)).chains[0].residue_numbers.tolist() == [number]

    @pytest.mark.parametrize("serial", ["*****", "A0000", "186a0", "", "100000"])
    def test_serials_are_not_read(self, read_pdb: Read, serial: str) -> None:
        lines = [
            f"ATOM {serial}{line[11:]}" if len(serial) == 6 else f"ATOM  {serial:>5}{line[11:]}"
            for line in chain_lines(["ALA", "GLY"])
        ]
        assert read_pdb(lines).chains[0].sequence == "AG"

    @pytest.mark.parametrize("text", ["", "x1", "1_0", "271a", "1.5"])
    def test_what_is_no_number(self, refused: Callable[..., str], text: str) -> None:
        message = refused([*residue_lines(), *residue_lines(number=text, at=2)])
        assert "line 6" in message
        assert "residue number" in message

    def test_numbers_of_waters_do_not_matter(self, read_pdb: Read) -> None:
        lines = [*residue_lines(), atom_line("O", "TIP", number="271a"), atom_line("O", "HOH", number="****")]
        assert len(read_pdb(lines).chains[0]) == 1


class TestOccupancyAndB:
    def test_blank(self, read_pdb: Read) -> None:
        structure = read_pdb([line[:54] for line in residue_lines()])
        assert (structure.chains[0].b_factors == 0).all()
        assert read_pdb(residue_lines(occupancy="", b="")).chains[0].atom_mask.sum() == 5

    def test_zero_occupancy_is_kept_and_noted(self, read_pdb: Read) -> None:
        structure = read_pdb(residue_lines(occupancy=0.0))
        assert structure.chains[0].atom_mask.sum() == 5
        assert note(structure, "5 atoms of zero occupancy kept")

    @pytest.mark.parametrize(("occupancy", "b"), [("  nan", 1.0), (1.0, "******"), ("1.0.0", 1.0)])
    def test_no_number(self, refused: Callable[..., str], occupancy: float | str, b: float | str) -> None:
        assert "line 1" in refused(residue_lines(occupancy=occupancy, b=b))


class TestModels:
    def test_the_first_by_default_and_any_by_number(self, read_pdb: Read, refused: Callable[..., str]) -> None:
        lines = []
        for number in (3, 7):
            lines += [f"MODEL     {number:4d}", *chain_lines(["ALA"], shift=(number, 0, 0)), "ENDMDL"]
        structure = read_pdb([*lines, "END"])
        assert (structure.model, structure.n_models) == (3, 2)
        assert alpha(structure) == [[8.0, 0.8, 0.1]]
        assert note(structure, "model 3 of 2")
        other = read_pdb(lines, model=7)
        assert (other.model, alpha(other)) == (7, [[12.0, 0.8, 0.1]])
        message = refused(lines, model=1)
        assert "no model 1" in message
        assert "3, 7" in message

    def test_without_endmdl(self, read_pdb: Read) -> None:
        lines = ["MODEL        1", *chain_lines(["ALA", "GLY"]), "MODEL        2", *chain_lines(["ALA", "GLY"])]
        structure = read_pdb(lines)
        assert (len(structure.chains[0]), structure.n_models) == (2, 2)
        assert len(read_pdb(lines[:11]).chains[0]) == 2

    def test_endmdl_alone_ends_a_model(self, read_pdb: Read) -> None:
        frames = [line for i in range(3) for line in (*chain_lines(["ALA"], shift=(i, 0, 0)), "ENDMDL")]
        assert read_pdb(frames).n_models == 3
        assert alpha(read_pdb(frames, model=2)) == [[6.0, 0.8, 0.1]]

    def test_end_between_models(self, read_pdb: Read) -> None:
        lines = [line for i in (1, 2) for line in (f"MODEL {i}", *chain_lines(["ALA"]), "TER", "END")]
        assert read_pdb(lines).n_models == 2

    def test_atoms_after_end_are_left_out_and_noted(self, read_pdb: Read) -> None:
        structure = read_pdb([*chain_lines(["ALA"]), "END", *chain_lines(["GLY"], chain="B"), "END"])
        assert [chain.id for chain in structure.chains] == ["A"]
        assert note(structure, "line 7", "END", "line 6")

    def test_an_empty_model_is_passed_over(self, read_pdb: Read) -> None:
        structure = read_pdb(["MODEL 1", "ENDMDL", "MODEL 2", *chain_lines(["ALA"]), "ENDMDL"])
        assert (structure.model, structure.n_models) == (2, 1)

    def test_a_model_number_twice(self, read_pdb: Read) -> None:
        lines = [line for x in (0, 5) for line in ("MODEL 1", *chain_lines(["ALA"], shift=(x, 0, 0)), "ENDMDL")]
        structure = read_pdb(lines, model=1)
        assert alpha(structure) == [[5.0, 0.8, 0.1]]
        assert note(structure, "model 1 occurs more than once")


class TestHeader:
    def test_resolution_and_release(self, read_pdb: Read) -> None:
        lines = [
            "HEADER    VIRAL PROTEIN                           27-MAR-98   1A8O",
            "REVDAT   2   24-FEB-09 1A8O    1       VERSN",
            "REVDAT   1   14-OCT-98 1A8O    0",
            "REMARK   2 RESOLUTION.    1.70 ANGSTROMS.",
            *chain_lines(["ALA"]),
        ]
        structure = read_pdb(lines)
        assert (structure.resolution, structure.release_date) == (1.7, "1998-10-14")

    def test_not_applicable(self, read_pdb: Read) -> None:
        structure = read_pdb(
            ["REMARK   2 RESOLUTION. NOT APPLICABLE.", "REVDAT   1   99-XXX-98", *chain_lines(["ALA"])]
        )
        assert (structure.resolution, structure.release_date) == (None, None)

    def test_missing_residues_are_placed(self, read_pdb: Read) -> None:
        lines = [
            "SEQRES   1 A    8  GLY ALA ALA SER THR TRP TRP VAL",
            *chain_lines(["ALA", "SER"], start=11),
            *chain_lines(["TRP", "VAL"], start=15),
        ]
        chain = read_pdb(lines).chains[0]
        assert (chain.sequence, chain.seqres) == ("ASWV", "GAASTWWV")
        assert chain.seqres_index is not None
        assert chain.seqres_index.tolist() == [2, 3, 6, 7]

    def test_seqres_of_something_else_is_not_used(self, read_pdb: Read) -> None:
        structure = read_pdb(["SEQRES   1 A    4  TRP TRP TRP TRP", *chain_lines(["ALA", "GLY", "SER", "VAL"])])
        assert structure.chains[0].seqres is None
        assert note(structure, "chain A", "does not fit")

    def test_repeats_are_placed_and_noted(self, read_pdb: Read) -> None:
        structure = read_pdb(["SEQRES   1 A    6  GLY SER GLY SER GLY SER", *chain_lines(["GLY", "SER"])])
        assert structure.chains[0].seqres_index is not None
        assert structure.chains[0].seqres_index.tolist() == [0, 1]
        assert note(structure, "several places")

    def test_two_character_chains_have_seqres(self, read_pdb: Read) -> None:
        chain = read_pdb(["SEQRES   1AB    2  GLY ALA", *chain_lines(["GLY", "ALA"], chain="AB")]).chains[0]
        assert chain.seqres == "GA"

    def test_old_files_have_an_id_in_the_last_columns(self, read_pdb: Read) -> None:
        row = f"{'SEQRES   1 A    2  GLY ALA':<72}1ABC  34"
        assert read_pdb([row, *chain_lines(["GLY", "ALA"])]).chains[0].seqres == "GA"
