"""The backend that lets OpenFold compute: against our own losses, with OpenFold where it is installed.

Everywhere else a stand-in takes its place (`openfold_stand_in`), which holds the arguments to OpenFold's conventions
and computes with plain loops in double precision what OpenFold documents.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from built_chains import ALL_TWENTY, BuiltChain, backbone_of, build_chain
from torch import Tensor

from protfold_peft import losses
from protfold_peft.errors import ConfigError
from protfold_peft.structure import read_structure
from protfold_peft.structure.geometry import atom37_to_atom14, groups_from_atoms, restypes_of, torsions
from protfold_peft.structure.residues import ATOM14_MASK, RESTYPE_INDEX
from protfold_peft.structure.rigid import Rigid

BACKEND = Path(losses.__file__).parent / "openfold.py"
STAND_IN = Path(__file__).with_name("openfold_stand_in.py")
# OpenFold's guards are added at other places than ours, and its frames are single precision.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def load(path: Path, name: str) -> ModuleType:
    """A module that is not kept: the backend is bound to the OpenFold that it finds when it is imported."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend on the stand-in."""
    for name, module in load(STAND_IN, "openfold_stand_in").modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return load(BACKEND, "openfold_backend")


@pytest.fixture
def installed() -> ModuleType:
    """The backend on OpenFold itself."""
    try:
        import openfold.utils.loss  # noqa: F401
    except Exception as error:
        pytest.skip(f"OpenFold (https://github.com/aqlaboratory/openfold) is not installed: {error}")
    return load(BACKEND, "openfold_backend")


@pytest.fixture(params=["stand-in", "OpenFold"])
def backend(request: pytest.FixtureRequest) -> ModuleType:
    """The backend on either of the two."""
    return request.getfixturevalue("stood_in" if request.param == "stand-in" else "installed")


@dataclass(frozen=True, eq=False)
class Batch:
    """A prediction of two steps and its truth: two chains of unlike length, padded to the longer."""

    steps: Rigid
    angles: Tensor
    frames: Rigid
    atom14: Tensor
    truth37: Tensor
    mask37: Tensor
    restypes: Tensor
    residues: Tensor

    @property
    def all_atoms(self) -> losses.AllAtomTarget:
        return losses.all_atom_target(self.atom14, self.truth37, self.mask37, self.restypes)

    @property
    def backbone(self) -> tuple[Rigid, Tensor]:
        return backbone_of(BuiltChain(self.frames, self.atom14, self.truth37, self.mask37, self.restypes))

    @property
    def torsions(self) -> losses.torsion_angles.Torsions:
        return torsions(self.truth37, self.mask37, self.restypes)


def batch_of(models: list[BuiltChain], truths: list[BuiltChain], dtype: torch.dtype = torch.float64) -> Batch:
    n = max(chain.restypes.shape[1] for chain in truths)
    padded = [[chain.padded(n - chain.restypes.shape[1], 0.0) for chain in chains] for chains in (models, truths)]

    def together(chains: list[BuiltChain], get: Callable[[BuiltChain], Tensor]) -> Tensor:
        found = torch.cat([get(chain) for chain in chains])
        return found.to(dtype) if found.is_floating_point() else found

    frames = Rigid(*(together(padded[0], lambda c, a=a: getattr(c.frames, a)) for a in ("rotation", "translation")))
    generator = torch.Generator().manual_seed(0)
    restypes = together(padded[1], lambda c: c.restypes)
    shape = (2, *restypes.shape)
    turn = Rigid.from_quaternion(torch.tensor([1.0, 0.2, 0.0, 0.1], dtype=dtype), torch.ones(3, dtype=dtype))
    turned = frames[:, :, 0].compose(Rigid(turn.rotation.expand(*restypes.shape, 3, 3), turn.translation))
    steps = [turned, frames[:, :, 0]]
    lengths = torch.tensor([chain.restypes.shape[1] for chain in truths])
    return Batch(
        steps=Rigid(torch.stack([s.rotation for s in steps]), torch.stack([s.translation for s in steps])),
        angles=2 * torch.randn(*shape, 7, 2, dtype=torch.float64, generator=generator).to(dtype),
        frames=frames,
        atom14=together(padded[0], lambda c: c.atom14),
        truth37=together(padded[1], lambda c: c.atom37),
        mask37=together(padded[1], lambda c: c.mask),
        restypes=restypes,
        residues=torch.arange(n)[None] < lengths[:, None],
    )


@pytest.fixture
def built() -> Batch:
    """Made chains with symmetric atoms, missing ones and a missing residue."""
    sequences = ("DEFYK", "YRPAGDL")
    truths = [build_chain(s, seed) for seed, s in enumerate(sequences)]
    truths[1] = truths[1].without(3).without(1, 5)
    return batch_of([build_chain(s, 10 + seed) for seed, s in enumerate(sequences)], truths)


def stretch(path: Path, n: int, seed: int) -> tuple[BuiltChain, BuiltChain]:
    """The first `n` residues of a file, and a model of them: the same atoms, each off by some tenths of an angstrom."""
    chain = read_structure(path).chains[0]
    restypes = restypes_of(chain.sequence[:n])[None]
    truth37 = torch.tensor(chain.atom_positions[None, :n])
    mask37 = torch.tensor(chain.atom_mask[None, :n])
    generator = torch.Generator().manual_seed(seed)
    moved = truth37 + 0.3 * torch.randn(truth37.shape, dtype=torch.float64, generator=generator)
    chains = []
    for positions in (moved, truth37):
        frames, _ = groups_from_atoms(positions, mask37, restypes)
        chains.append(BuiltChain(frames, atom37_to_atom14(positions, restypes), positions, mask37, restypes))
    return chains[0], chains[1]


@pytest.fixture
def real(structures: Path) -> Batch:
    """Stretches of two files; short, since the stand-in loops over atoms."""
    pairs = [stretch(structures / "1LCD_A.pdb", 12, 0), stretch(structures / "1A8O_A.pdb", 9, 1)]
    return batch_of([model for model, _ in pairs], [truth for _, truth in pairs])


@pytest.mark.parametrize("of", ["built", "real"])
@pytest.mark.parametrize("clamp", [10.0, 2.0, None, (3.0, math.inf)])
def test_backbone_fape(backend, request, of, clamp) -> None:
    batch = request.getfixturevalue(of)
    given = torch.tensor(clamp) if isinstance(clamp, tuple) else clamp
    found = backend.backbone_fape(batch.steps, *batch.backbone, clamp=given)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, losses.backbone_fape(batch.steps, *batch.backbone, clamp=given), **CLOSE)


@pytest.mark.parametrize("of", ["built", "real"])
@pytest.mark.parametrize("clamp", [10.0, None, (3.0, math.inf)])
def test_side_chain_fape(backend, request, of, clamp) -> None:
    batch = request.getfixturevalue(of)
    given = torch.tensor(clamp) if isinstance(clamp, tuple) else clamp
    found = backend.side_chain_fape(batch.frames, batch.atom14, batch.all_atoms, clamp=given)
    expected = losses.side_chain_fape(batch.frames, batch.atom14, batch.all_atoms, clamp=given)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("of", ["built", "real"])
def test_torsion_loss(backend, request, of) -> None:
    batch = request.getfixturevalue(of)
    found = backend.torsion_loss(batch.angles, batch.torsions, batch.residues)
    torch.testing.assert_close(found, losses.torsion_loss(batch.angles, batch.torsions, batch.residues), **CLOSE)


def test_every_half_turn_is_forgiven_as_ours_forgives_it(backend) -> None:
    """Samples with other residues at the same places: what one forgives the other must not."""
    pairs = [(letter, "K") for letter in ALL_TWENTY]
    for letters in (pairs, [(b, a) for a, b in pairs]):
        chains = [build_chain("".join(pair[side] for pair in letters), side) for side in (0, 1)]
        batch = batch_of(chains, chains)
        angles = batch.torsions.sin_cos[None].clone()
        for chi in range(4):
            turned = angles.clone()
            turned[..., 3 + chi, :] *= -1
            expected = losses.torsion_loss(turned, batch.torsions, batch.residues)
            torch.testing.assert_close(
                backend.torsion_loss(turned, batch.torsions, batch.residues), expected, rtol=1e-3, atol=1e-4
            )


def placed(restypes: Tensor, atoms: dict[tuple[int, int, int], tuple[float, float, float]]) -> tuple[Tensor, Tensor]:
    """Positions `(b, n, 14, 3)` and mask with only the atoms given, by sample, residue and place."""
    positions = torch.zeros(*restypes.shape, 14, 3, dtype=torch.float64)
    mask = torch.zeros(*restypes.shape, 14, dtype=torch.bool)
    for place, xyz in atoms.items():
        positions[place], mask[place] = torch.tensor(xyz, dtype=torch.float64), True
    return positions, mask


def test_violations_have_closed_forms(backend) -> None:
    """A stretched bond before proline in one sample, a clash of oxygen and sulphur in the other."""
    restypes = torch.stack([restypes_of("GPA"), restypes_of("CAS")])
    length = 1.341 + 12 * 0.016 + 0.25
    positions, mask = placed(
        restypes, {(0, 0, 2): (0, 0, 0), (0, 1, 0): (length, 0, 0), (1, 0, 5): (5, 5, 5), (1, 2, 3): (5, 6.5, 5)}
    )
    # A mask of an atom that the residue type does not have counts for nothing.
    mask[0, 0, 9] = True
    found = backend.violation_loss(positions, mask, restypes)
    stretched = math.sqrt((math.sqrt(length**2 + 1e-6) - 1.341) ** 2 + 1e-6) - 12 * 0.016
    overlap = 1.8 + 1.52 - 1.5 - 1.5
    torch.testing.assert_close(found, torch.tensor([stretched, 2 * overlap / 2], dtype=torch.float64), **CLOSE)


def test_numbers_that_begin_anew_hide_no_clash(backend) -> None:
    """Two chains of two residues, numbered alike: a clash between equal numbers, and no bond across the gap."""
    restypes = restypes_of("GAGA")[None]
    atoms = {(0, 0, 1): (0, 0, 0), (0, 2, 1): (0, 1.2, 0), (0, 1, 2): (9, 0, 0), (0, 2, 0): (20, 0, 0)}
    positions, mask = placed(restypes, atoms)
    found = backend.violation_loss(positions, mask, restypes, torch.tensor([[1, 2, 1, 2]]))
    torch.testing.assert_close(found.item(), 2 * (2 * 1.7 - 1.5 - 1.2) / 4, rtol=1e-3, atol=0)
    # With one number after the other C and N are bonded, and 11 angstrom apart.
    assert backend.violation_loss(positions, mask, restypes).item() > 9


def test_violations_of_a_real_stretch_are_those_of_alphafold(real, stood_in) -> None:
    mask = torch.tensor(ATOM14_MASK)[real.restypes] & atom37_to_atom14(real.mask37, real.restypes)
    found = stood_in.violation_loss(real.atom14, mask, real.restypes)
    ours = losses.violations(real.atom14, mask, real.restypes, like_alphafold_2_3=True)
    # The stand-in knows bonds and clashes, no angles and nothing within residues.
    expected = ours.c_n + ours.clashes.sum(dim=(-2, -1)) / ours.n_atoms
    assert (expected > 0).all()
    torch.testing.assert_close(found, expected, **CLOSE)


def test_all_violations_of_real_stretches_are_those_of_openfold(real, installed) -> None:
    mask = atom37_to_atom14(real.mask37, real.restypes)
    found = installed.violation_loss(real.atom14, mask, real.restypes)
    expected = losses.violation_loss(real.atom14, mask, real.restypes, like_alphafold_2_3=True)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_gradients_reach_the_model(backend, real) -> None:
    batch = replace(
        real,
        atom14=real.atom14.clone().requires_grad_(),
        angles=real.angles.clone().requires_grad_(),
        steps=Rigid(real.steps.rotation, real.steps.translation.clone().requires_grad_()),
    )
    mask = atom37_to_atom14(batch.mask37, batch.restypes)
    frames = batch.frames.detach()
    target = losses.all_atom_target(batch.atom14.detach(), batch.truth37, batch.mask37, batch.restypes)
    for found, ours, leaf in (
        (
            backend.backbone_fape(batch.steps, *batch.backbone),
            losses.backbone_fape(batch.steps, *batch.backbone),
            batch.steps.translation,
        ),
        (
            backend.side_chain_fape(frames, batch.atom14, target),
            losses.side_chain_fape(frames, batch.atom14, target),
            batch.atom14,
        ),
        (
            backend.torsion_loss(batch.angles, batch.torsions, batch.residues),
            losses.torsion_loss(batch.angles, batch.torsions, batch.residues),
            batch.angles,
        ),
    ):
        [of_openfold], [own] = (torch.autograd.grad(value.sum(), leaf) for value in (found, ours))
        torch.testing.assert_close(of_openfold, own, rtol=1e-2, atol=1e-4)
    [slope] = torch.autograd.grad(backend.violation_loss(batch.atom14, mask, batch.restypes).sum(), batch.atom14)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


def test_single_precision_stays_single(backend) -> None:
    chains = [build_chain("DAY", seed, dtype=torch.float32) for seed in (0, 1)]
    batch = batch_of(chains[:1], chains[1:], torch.float32)
    mask = torch.tensor(ATOM14_MASK)[batch.restypes]
    for value in (
        backend.backbone_fape(batch.steps, *batch.backbone),
        backend.side_chain_fape(batch.frames, batch.atom14, batch.all_atoms),
        backend.torsion_loss(batch.angles, batch.torsions, batch.residues),
        backend.violation_loss(batch.atom14, mask, batch.restypes),
    ):
        assert value.shape == (1,)
        assert value.dtype == torch.float32


def test_a_sample_without_a_truth_is_0(backend, built) -> None:
    empty = replace(built, mask37=built.mask37 & torch.tensor([False, True])[:, None, None])
    assert backend.backbone_fape(empty.steps, *empty.backbone)[0] == 0
    assert backend.side_chain_fape(empty.frames, empty.atom14, empty.all_atoms)[0] == 0


def test_unknown_residues_have_no_atoms_to_clash(backend) -> None:
    restypes = torch.full((1, 2), RESTYPE_INDEX["X"])
    mask = torch.ones(1, 2, 14, dtype=torch.bool)
    assert backend.violation_loss(torch.zeros(1, 2, 14, 3), mask, restypes).tolist() == [0.0]


@pytest.mark.parametrize("how", ["absent", "another package", "broken"])
def test_without_openfold_the_error_names_the_remedy(how, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "openfold"]:
        monkeypatch.delitem(sys.modules, name)
    if how == "absent":
        monkeypatch.setitem(sys.modules, "openfold", None)
    elif how == "another package":
        monkeypatch.setitem(sys.modules, "openfold", ModuleType("openfold"))
    else:
        package = ModuleType("openfold")
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "openfold", package)
        broken = ModuleType("openfold.utils")
        broken.__getattr__ = lambda name: (_ for _ in ()).throw(OSError("libcuda.so:\n  cannot open"))
        monkeypatch.setitem(sys.modules, "openfold.utils", broken)
        monkeypatch.setitem(sys.modules, "openfold.utils.loss", broken)
    with pytest.raises(ConfigError, match=r"https://github\.com/aqlaboratory/openfold.*loss\.backend to own") as raised:
        load(BACKEND, "openfold_backend")
    assert "\n" not in str(raised.value)
    assert "loss.backend is openfold" in str(raised.value)
