"""Which records of a PDB file are protein, and which amino acids they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structure.made import atom_line, chain_lines, note, residue_lines

from protfold_peft.structure import Structure

Read = Callable[..., Structure]


class TestModified:
    def test_selenomethionine(self, read_pdb: Read) -> None:
        lines = [
            *residue_lines(number=1),
            *residue_lines("MSE", number=2, record="HETATM"),
            atom_line("SE", "MSE", number=2, xyz=(7, 7, 7), record="HETATM", element="SE"),
            *residue_lines(number=3),
        ]
        structure = read_pdb(lines)
        chain = structure.chains[0]
        assert (chain.sequence, chain.residue_names) == ("AMA", ("ALA", "MSE", "ALA"))
        assert chain.atom_positions[1, 18].tolist() == [7.0, 7.0, 7.0]  # SD
        assert note(structure, "MSE read as M at 2")

    def test_phosphoserine_keeps_what_serine_has(self, read_pdb: Read) -> None:
        lines = [
            *residue_lines("SEP"),
            atom_line("OG", "SEP", xyz=(7, 7, 7)),
            atom_line("P", "SEP", xyz=(8, 8, 8)),
            atom_line("O1P", "SEP", xyz=(9, 9, 9)),
        ]
        chain = read_pdb(lines).chains[0]
        assert chain.sequence == "S"
        assert chain.atom_mask.sum() == 6

    def test_modres_names_the_parent(self, read_pdb: Read) -> None:
        lines = ["MODRES 1ABC ZZ9 A    2  LYS", *chain_lines(["ALA", "ZZ9", "ALA"])]
        assert read_pdb(lines).chains[0].sequence == "AKA"
        assert read_pdb(lines[1:]).chains[0].sequence == "AXA"

    def test_unknown_residues_keep_backbone_and_cb(self, read_pdb: Read) -> None:
        structure = read_pdb([*residue_lines("UNK"), atom_line("CG", "UNK"), *residue_lines(number=2)])
        assert structure.chains[0].sequence == "XA"
        assert structure.chains[0].atom_mask.sum(1).tolist() == [5, 5]
        assert note(structure, "UNK read as X at 1")

    def test_names_of_force_fields(self, read_pdb: Read) -> None:
        lines = [
            *chain_lines(["HSD", "HIE", "CYX", "ILE"]),
            atom_line("CD", "ILE", number=4, xyz=(7, 7, 7)),
            *residue_lines("PHE", number=5, atoms=("N", "CA", "C")),
            atom_line("OT1", "PHE", number=5, xyz=(8, 8, 8)),
            atom_line("OT2", "PHE", number=5, xyz=(9, 9, 9)),
        ]
        chain = read_pdb(lines).chains[0]
        assert chain.sequence == "HHCIF"
        assert chain.atom_positions[3, 12].tolist() == [7.0, 7.0, 7.0]  # CD1
        assert chain.atom_positions[4, [4, 36], 0].tolist() == [8.0, 9.0]  # O, OXT

    @pytest.mark.parametrize("chain", [" ", "A"])
    def test_names_of_four_letters(self, read_pdb: Read, chain: str) -> None:
        """NMET and LYSH reach into column 21, where two-character chain ids begin."""
        lines = [
            *residue_lines("NME", chain=f"T{chain}", number=1),
            *residue_lines("ALA", chain=chain, number=2),
            *residue_lines("LYS", chain=f"H{chain}", number=3),
        ]
        structure = read_pdb(lines)
        assert [(one.id, one.sequence) for one in structure.chains] == [(chain.strip(), "MAK")]
        assert note(structure, "residue 1", "NMET read as MET")

    def test_real_two_character_chains_are_not_taken_for_names(self, read_pdb: Read) -> None:
        lines = [*chain_lines(["ALA"] * 2, chain="A"), *chain_lines(["LYS", "ALA"], chain="HA")]
        assert [(one.id, one.sequence) for one in read_pdb(lines).chains] == [("A", "AA"), ("HA", "KA")]

    def test_hydrogens_and_deuterium_are_left_out(self, read_pdb: Read) -> None:
        lines = residue_lines() + [atom_line(name) for name in ("H", "1HB", "HB2", "D", "DA")]
        structure = read_pdb(lines)
        assert structure.chains[0].atom_mask.sum() == 5
        assert structure.notes == ("5 hydrogen atoms left out",)


class TestWhatIsProtein:
    SEQRES = "SEQRES   1 A    4  ALA GLY MSE SER"

    def test_water_ligand_sugar_and_nucleic_acid_are_left_out(self, read_pdb: Read) -> None:
        lines = [
            *chain_lines(["ALA", "GLY"]),
            "TER",
            atom_line("O", "HOH", number=101, record="HETATM"),
            atom_line("FE", "HEM", number=102, record="HETATM"),
            atom_line("C1", "NAG", number=103, record="HETATM"),
            atom_line("P", "DA", chain="B", number=1),
        ]
        structure = read_pdb(lines)
        assert [(chain.id, len(chain)) for chain in structure.chains] == [("A", 2)]
        assert note(structure, "1 waters left out")
        assert note(structure, "HEM x1", "NAG x1")
        assert note(structure, "chain B", "nucleic acid", "whole chain")

    def test_a_free_amino_acid_after_ter_is_a_ligand(self, read_pdb: Read) -> None:
        free = residue_lines("GLU", number=200, at=0, shift=(0, 20, 0), record="HETATM")
        structure = read_pdb([*chain_lines(["ALA", "GLY"]), "TER", *free])
        assert structure.chains[0].sequence == "AG"
        assert note(structure, "free amino acid", "GLU")

    def test_a_free_amino_acid_without_ter_too(self, read_pdb: Read) -> None:
        free = residue_lines("GLU", number=200, at=0, shift=(0, 20, 0), record="HETATM")
        assert read_pdb([*chain_lines(["ALA", "GLY"]), *free]).chains[0].sequence == "AG"
        assert read_pdb([*free, *chain_lines(["ALA", "GLY"])]).chains[0].sequence == "AG"

    def test_hetatm_among_the_atom_records_is_no_ligand(self, read_pdb: Read) -> None:
        inside = residue_lines("SER", number=9, record="HETATM")
        lines = [*residue_lines(number=1), *inside, *residue_lines(number=20)]
        assert read_pdb(lines).chains[0].sequence == "ASA"

    def test_a_free_amino_acid_with_the_number_of_a_residue(self, read_pdb: Read) -> None:
        free = residue_lines("GLU", number=1, at=0, shift=(0, 20, 0), record="HETATM")
        assert read_pdb([*chain_lines(["ALA", "GLY"]), "TER", *free]).chains[0].sequence == "AG"

    def test_a_modified_last_residue_is_bonded(self, read_pdb: Read) -> None:
        lines = [*chain_lines(["ALA", "GLY"]), *residue_lines("SEP", number=3, record="HETATM")]
        assert read_pdb(lines).chains[0].sequence == "AGS"
        assert read_pdb([*lines, "TER"]).chains[0].sequence == "AGS"

    def test_a_modified_last_residue_after_a_gap_is_known_by_seqres(self, read_pdb: Read) -> None:
        lines = [self.SEQRES, *chain_lines(["ALA"]), *residue_lines("MSE", number=3, record="HETATM"), "TER"]
        chain = read_pdb(lines).chains[0]
        assert chain.sequence == "AM"
        assert chain.seqres == "AGMS"
        assert chain.seqres_index is not None
        assert chain.seqres_index.tolist() == [0, 2]

    def test_modified_residues_at_the_end_of_the_file_go_to_their_place(self, read_pdb: Read) -> None:
        lines = [*chain_lines(["ALA", "GLY"]), *chain_lines(["SER", "THR"], start=4), "TER"]
        structure = read_pdb([*lines, *residue_lines("SEP", number=3, record="HETATM")])
        assert structure.chains[0].residue_numbers.tolist() == [1, 2, 3, 4, 5]
        assert note(structure, "SEP 3", "peptide bonds")

    def test_a_chain_of_hetatm_only(self, read_pdb: Read) -> None:
        assert read_pdb(chain_lines(["DAL", "MLE", "DVA"], record="HETATM")).chains[0].sequence == "ALV"

    def test_caps_are_no_residues(self, read_pdb: Read) -> None:
        lines = [
            atom_line("C", "ACE", number=0, xyz=(2.5, 0.1, 0.2)),
            atom_line("CH3", "ACE", number=0),
            *chain_lines(["ALA", "GLY"]),
            atom_line("N", "NH2", number=3),
        ]
        assert read_pdb(lines).chains[0].sequence == "AG"

    def test_an_ion_called_ca_is_no_carbon(self, read_pdb: Read) -> None:
        lines = [
            *chain_lines(["ALA"]),
            "HETATM    9 CA    CA A 300       9.000   9.000   9.000  1.00  9.00          CA",
        ]
        assert len(read_pdb(lines).chains[0]) == 1

    def test_only_ca(self, read_pdb: Read) -> None:
        lines = [line for i in range(1, 5) for line in residue_lines(number=i, atoms=("CA",))]
        chain = read_pdb(lines).chains[0]
        assert chain.sequence == "AAAA"
        assert chain.atom_mask.sum() == 4

    def test_a_residue_without_ca_stays_one_without_backbone_goes(self, read_pdb: Read) -> None:
        lines = [
            *residue_lines(number=1),
            *residue_lines(number=2, atoms=("N", "C", "O")),
            *residue_lines(number=3, atoms=("CB",)),
            *residue_lines(number=4),
        ]
        structure = read_pdb(lines)
        assert structure.chains[0].residue_numbers.tolist() == [1, 2, 4]
        assert not structure.chains[0].atom_mask[1, 1]
        assert note(structure, "without a backbone atom", "ALA 3")
