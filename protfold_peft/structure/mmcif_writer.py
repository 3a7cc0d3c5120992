"""Writing ModelCIF: mmCIF with entities, the software, and confidence in the tables that viewers read.

Mol* colours by confidence when a local metric is named exactly `pLDDT`; ChimeraX's AlphaFold palette reads B-factors.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from string import ascii_uppercase

import gemmi
import ihm
import modelcif
import modelcif.dumper
import modelcif.model
import modelcif.protocol
import modelcif.qa_metric
import numpy as np

from protfold_peft.errors import StructureError
from protfold_peft.structure.components import written_atom
from protfold_peft.structure.pdb_writer import full_sequence_names
from protfold_peft.structure.residues import ATOM_TYPES
from protfold_peft.structure.types import Chain, Structure
from protfold_peft.structure.writing import check_structure, write_structure_text
from protfold_peft.version import __version__

LOGGER = logging.getLogger("protfold")

# The PAE table has a row per pair of residues: above this size it is left to the JSON file (65,536 rows, 3 MB).
MOST_PAE_RESIDUES = 256
_CHAIN_IDS = [*ascii_uppercase, *(a + b for a in ascii_uppercase for b in ascii_uppercase)]


def write_mmcif(
    structure: Structure,
    path: str | os.PathLike[str],
    *,
    plddt: np.ndarray | None = None,
    ptm: float | None = None,
    pae: np.ndarray | None = None,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write the chains as one ModelCIF model, whole or not at all.

    Chains with the same residues are one entity. Author chain ids and residue numbers are kept; a blank chain id, which
    mmCIF cannot have, becomes the first free capital letter. Where the full sequence is known it is the entity's, else
    the residues with coordinates are.

    Args:
        structure: What to write; its B-factors are written as they are, or pLDDT where they are all 0.
        path: The file; gzipped where the name ends in `.gz`.
        plddt: `(n,)` pLDDT 0..100 of all residues of all chains in order; None for an experimental structure.
        ptm: Predicted TM-score, 0..1.
        pae: `(n, n)` predicted aligned error in angstrom; left out above `MOST_PAE_RESIDUES` residues.
        provenance: How the model was made; written as parameters of the software.

    Raises:
        StructureError: A value is not finite or out of its range, or an array does not fit the residues.
    """
    path = Path(path)
    check_structure(structure, path)
    plddt, pae = _checked(structure, path, plddt, ptm, pae)

    system = modelcif.System(title=structure.name, id=_entry_id(structure.name))
    asyms, residues = _asym_units(structure, system)
    # A stated type only where this program made the coordinates.
    predicted = plddt is not None or ptm is not None or pae is not None or bool(provenance)
    kind = modelcif.model.AbInitioModel if predicted else modelcif.model.Model
    model = kind(assembly=modelcif.Assembly(asyms, name="Modelled chains"), name=structure.name)
    for atom in _atoms(structure, asyms, residues, plddt):
        model.add_atom(atom)
    for asym, places in zip(asyms, residues, strict=True):
        for begin, end in _gaps(places, len(asym.entity.sequence)):
            model.not_modeled_residue_ranges.append(modelcif.model.NotModeledResidueRange(asym, begin, end))
    system.model_groups.append(modelcif.model.ModelGroup([model], name="All models"))
    if predicted:
        software = _software(dict(provenance or {}))
        entities = modelcif.data.DataGroup(dict.fromkeys(asym.entity for asym in asyms))
        protocol = modelcif.protocol.Protocol()
        protocol.steps.append(
            modelcif.protocol.ModelingStep(
                input_data=entities, output_data=model, name="Structure prediction", software=software
            )
        )
        system.protocols.append(protocol)
        _add_metrics(model, software, asyms, residues, plddt, ptm, pae)

    text = io.StringIO()
    modelcif.dumper.write(text, [system])
    # modelcif calls everything computed; where nothing says that this was, the method stays open.
    method = "_struct.pdbx_structure_determination_methodology"
    whole = text.getvalue()
    write_structure_text(path, whole if predicted else whole.replace(f"{method} computational", f"{method} ?", 1))


def _checked(
    structure: Structure, path: Path, plddt: np.ndarray | None, ptm: float | None, pae: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The confidence arrays as float64; PAE only where it is small enough."""
    n = structure.n_residues
    if plddt is not None:
        plddt = np.asarray(plddt, dtype=np.float64)
        if plddt.shape != (n,):
            raise StructureError(f"{path}: pLDDT has shape {plddt.shape}, but {structure.name} has {n} residues")
        if not ((plddt >= 0) & (plddt <= 100)).all():
            raise StructureError(f"{path}: pLDDT must be finite and within 0..100")
    if ptm is not None and not 0 <= ptm <= 1:
        raise StructureError(f"{path}: pTM is {ptm}; it must be within 0..1")
    if pae is not None:
        pae = np.asarray(pae, dtype=np.float64)
        if pae.shape != (n, n):
            raise StructureError(f"{path}: PAE has shape {pae.shape}, but {structure.name} has {n} residues")
        if not (np.isfinite(pae).all() and (pae >= 0).all()):
            raise StructureError(f"{path}: PAE must be finite and not negative")
        if n > MOST_PAE_RESIDUES:
            LOGGER.info("%s: PAE of %d residues is not written to mmCIF (at most %d)", path, n, MOST_PAE_RESIDUES)
            pae = None
    return plddt, pae


def _entry_id(name: str) -> str:
    """A data block name: printable ASCII without blanks."""
    return "".join(c if c.isascii() and c.isprintable() and not c.isspace() else "_" for c in name) or "model"


def _component(name: str, letter: str) -> ihm.ChemComp:
    """The chemical component of a residue."""
    known = ihm.LPeptideAlphabet._comps
    for code in (letter, name):
        if code in known and known[code].id == name:
            return known[code]
    # Names of force fields (HSD) and the like are in no public dictionary.
    ccd = "core" if gemmi.find_tabulated_residue(name).found() else "local"
    return ihm.LPeptideChemComp(name, name, letter, name=name, ccd=ccd)


def _asym_units(structure: Structure, system: modelcif.System) -> tuple[list[modelcif.AsymUnit], list[np.ndarray]]:
    """Asymmetric units of the chains, and for each the 1-based places `(n,)` of its residues in the entity."""
    entities: dict[tuple[tuple[str, str], ...], modelcif.Entity] = {}
    components: dict[tuple[str, str], ihm.ChemComp] = {}
    asyms, residues = [], []
    used = {chain.id for chain in structure.chains}
    for chain in structure.chains:
        letters = chain.seqres if chain.seqres is not None else chain.sequence
        sequence = tuple(zip(full_sequence_names(chain), letters, strict=True))
        if sequence not in entities:
            for pair in sequence:
                if pair not in components:
                    components[pair] = _component(*pair)
            entities[sequence] = modelcif.Entity(
                [components[pair] for pair in sequence], description=f"{structure.name} {len(entities) + 1}"
            )
        places = np.arange(len(chain)) if chain.seqres_index is None else chain.seqres_index
        chain_id = chain.id or next(name for name in _CHAIN_IDS if name not in used)
        asyms.append(
            modelcif.AsymUnit(
                entities[sequence],
                details=f"chain {chain_id}",
                id=chain_id,
                auth_seq_id_map=_author_numbers(chain, places, len(sequence)),
            )
        )
        residues.append(places + 1)
    system.entities.extend(entities.values())
    system.asym_units.extend(asyms)
    return asyms, residues


def _author_numbers(chain: Chain, places: np.ndarray, length: int) -> dict[int, tuple[int, str | None]]:
    """Author number and insertion code of every place; those without residues count on from their neighbour."""
    numbers = {
        int(place) + 1: (int(number), icode or None)
        for place, number, icode in zip(places, chain.residue_numbers, chain.insertion_codes, strict=True)
    }
    first = int(places[0]) + 1
    for place in range(first - 1, 0, -1):
        numbers[place] = (numbers[place + 1][0] - 1, None)
    for place in range(first + 1, length + 1):
        numbers.setdefault(place, (numbers[place - 1][0] + 1, None))
    return numbers


def _gaps(places: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
    """Stretches of 1..length, first and last included, that are not among the rising `places`."""
    edges = [0, *places.tolist(), length + 1]
    for before, after in pairwise(edges):
        if after - before > 1:
            yield before + 1, after - 1


def _atoms(
    structure: Structure, asyms: list[modelcif.AsymUnit], residues: list[np.ndarray], plddt: np.ndarray | None
) -> Iterator[modelcif.model.Atom]:
    use_plddt = plddt is not None and not any(chain.b_factors.any() for chain in structure.chains)
    start = 0
    for chain, asym, places in zip(structure.chains, asyms, residues, strict=True):
        for row, column in np.argwhere(chain.atom_mask):
            name, element = written_atom(chain.residue_names[row], ATOM_TYPES[column])
            x, y, z = (float(value) for value in chain.atom_positions[row, column])
            b = plddt[start + row] if use_plddt and plddt is not None else chain.b_factors[row, column]
            yield modelcif.model.Atom(
                asym_unit=asym,
                seq_id=int(places[row]),
                atom_id=name,
                type_symbol=element.capitalize(),
                x=x,
                y=y,
                z=z,
                het=False,
                biso=float(b),
                occupancy=1.0,
            )
        start += len(chain)


def _software(provenance: dict[str, str]) -> modelcif.SoftwareGroup:
    program = modelcif.Software(
        name="protfold-peft",
        classification="model building",
        description="ESMFold with tensor adapters",
        location=None,
        type="package",
        version=__version__,
    )
    if not provenance:
        return modelcif.SoftwareGroup([program])
    parameters = [modelcif.SoftwareParameter(name=key, value=str(value)) for key, value in provenance.items()]
    return modelcif.SoftwareGroup([modelcif.SoftwareWithParameters(program, parameters)])


def _add_metrics(
    model: modelcif.model.Model,
    program: modelcif.SoftwareGroup,
    asyms: list[modelcif.AsymUnit],
    residues: list[np.ndarray],
    plddt: np.ndarray | None,
    ptm: float | None,
    pae: np.ndarray | None,
) -> None:
    """Attach confidence to the model."""

    # modelcif numbers metrics on their classes, so every file gets classes of its own.
    class GlobalPlddt(modelcif.qa_metric.Global, modelcif.qa_metric.PLDDT):
        """Mean predicted lDDT of the CA atoms, 0..100"""

        name = "pLDDT"
        software = program

    class LocalPlddt(modelcif.qa_metric.Local, modelcif.qa_metric.PLDDT):
        """Predicted lDDT of the CA atom, 0..100"""

        name = "pLDDT"
        software = program

    class Ptm(modelcif.qa_metric.Global, modelcif.qa_metric.PTM):
        """Predicted TM-score, 0..1"""

        name = "pTM"
        software = program

    class Pae(modelcif.qa_metric.LocalPairwise, modelcif.qa_metric.PAE):
        """Predicted aligned error in angstrom; the first residue is the one aligned on"""

        name = "PAE"
        software = program

    places = [asym.residue(int(place)) for asym, numbers in zip(asyms, residues, strict=True) for place in numbers]
    if plddt is not None:
        model.qa_metrics.append(GlobalPlddt(round(float(plddt.mean()), 3)))
        model.qa_metrics.extend(LocalPlddt(place, round(float(v), 3)) for place, v in zip(places, plddt, strict=True))
    if ptm is not None:
        model.qa_metrics.append(Ptm(round(float(ptm), 4)))
    if pae is not None:
        for one, row in zip(places, pae, strict=True):
            model.qa_metrics.extend(Pae(one, other, round(float(v), 3)) for other, v in zip(places, row, strict=True))
