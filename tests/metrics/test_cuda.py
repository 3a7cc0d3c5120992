"""Scores on a GPU equal those on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scored_pairs import KINDS, padded, perturbed, random_walk

from protfold_peft.metrics import (
    backbone_geometry,
    clashes,
    gdt_ha,
    gdt_ts,
    lddt,
    plddt_calibration,
    rmsd,
    sound_atoms,
    superpose,
    tm_score,
)
from protfold_peft.structure import read_structure
from protfold_peft.structure.geometry import restypes_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float32, torch.float64]


def batch(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Pairs of lengths 1..150, padded: model, reference, mask, model's mask."""
    rng = np.random.default_rng(0)
    chains = [random_walk(n, rng) for n in (1, 2, 3, 4, 5, 20, 21, 22, 60, 100, 150)]
    models = [perturbed(chain, KINDS[i % len(KINDS)], rng) for i, chain in enumerate(chains)]
    there = [np.ones(len(chain), dtype=bool) for chain in chains]
    return (
        padded([model for model, _ in models], 0.0).to(dtype),
        padded(chains, 0.0).to(dtype),
        padded(there, False),
        padded([present for _, present in models], False),
    )


def on_gpu(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.cuda() for tensor in tensors]


def assert_same(gpu: torch.Tensor, cpu: torch.Tensor) -> None:
    assert gpu.is_cuda
    assert gpu.dtype == cpu.dtype
    torch.testing.assert_close(gpu.cpu().double(), cpu.double(), atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("search", ["tmscore", "irls"])
def test_tm_score(dtype: torch.dtype, search: str) -> None:
    inputs = batch(dtype)
    assert_same(tm_score(*on_gpu(*inputs), search=search).score, tm_score(*inputs, search=search).score)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", [gdt_ts, gdt_ha, rmsd])
def test_gdt_and_rmsd(dtype: torch.dtype, score) -> None:
    inputs = batch(dtype)
    assert_same(score(*on_gpu(*inputs)).score, score(*inputs).score)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lddt(dtype: torch.dtype) -> None:
    inputs = batch(dtype)
    gpu, cpu = lddt(*on_gpu(*inputs)), lddt(*inputs)
    assert_same(gpu.score, cpu.score)
    assert_same(gpu.per_residue, cpu.per_residue)
    assert torch.equal(gpu.n_pairs.cpu(), cpu.n_pairs)


def test_superpose_and_its_gradient() -> None:
    model, reference, mask, _ = batch(torch.float64)
    gradients = []
    for device in ("cpu", "cuda"):
        mobile = model[5:].to(device).requires_grad_()
        fit = superpose(mobile, reference[5:].to(device), mask[5:].to(device))
        (fit.rmsd.sum() + fit.rotation.sum()).backward()
        gradients.append(mobile.grad)
    assert_same(gradients[1], gradients[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_atoms(structures: Path, dtype: torch.dtype) -> None:
    chain = read_structure(structures / "1A8O_A.pdb").chains[0]
    reference = torch.tensor(chain.atom_positions, dtype=dtype)[None]
    mask = torch.tensor(chain.atom_mask)[None]
    model = reference + torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    restypes = restypes_of(chain.sequence)[None]
    for options in ({}, {"stereochemistry": True}):
        gpu = lddt(*on_gpu(model, reference, mask), restypes=restypes.cuda(), **options)
        assert_same(gpu.score, lddt(model, reference, mask, restypes=restypes, **options).score)
    assert_same(clashes(*on_gpu(model, mask)).count, clashes(model, mask).count)
    assert torch.equal(sound_atoms(*on_gpu(model, mask, restypes)).cpu(), sound_atoms(model, mask, restypes))
    gpu, cpu = backbone_geometry(*on_gpu(model, mask, restypes)), backbone_geometry(model, mask, restypes)
    for name in gpu.__dataclass_fields__:
        assert_same(getattr(gpu, name), getattr(cpu, name))
    true = lddt(model[:, :, 1], reference[:, :, 1], mask[:, :, 1]).per_residue
    inputs = 100 * true.flip(1), true, mask[:, :, 1]
    assert_same(plddt_calibration(*on_gpu(*inputs)).spearman, plddt_calibration(*inputs).spearman)
