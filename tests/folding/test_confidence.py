"""Confidence measures against their definitions, written out, and against stored values of AlphaFold's own code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from protfold_peft.folding import confidence


def test_plddt_of_certain_logits_is_the_bin_centre() -> None:
    logits = torch.full((3, 50), -1e9)
    logits[0, 0] = logits[1, 24] = logits[2, 49] = 0
    assert torch.allclose(confidence.plddt(logits), torch.tensor([1.0, 49.0, 99.0]))


def test_pae_of_certain_logits_is_the_bin_centre() -> None:
    logits = torch.full((2, 2, 64), -1e9)
    logits[0, 0, 0] = logits[0, 1, 1] = logits[1, 0, 62] = logits[1, 1, 63] = 0
    step = 31 / 62
    wanted = torch.tensor([[step / 2, 1.5 * step], [31 + step / 2, 31 + 1.5 * step]])
    assert torch.allclose(confidence.predicted_aligned_error(logits), wanted)
    assert confidence.pae_bin_centres(64)[-1] == pytest.approx(31.75)


def ptm_by_definition(probabilities: np.ndarray) -> float:
    """Loops over the formula of AlphaFold 2 supplement 1.9.7."""
    n = len(probabilities)
    d0 = 1.24 * (max(n, 19) - 15) ** (1 / 3) - 1.8
    best = 0.0
    for i in range(n):
        total = 0.0
        for j in range(n):
            for b in range(64):
                total += probabilities[i, j, b] / (1 + ((b + 0.5) * 0.5 / d0) ** 2)
        best = max(best, total / n)
    return best


def test_ptm_by_definition_and_padding_and_linkers_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 24, 24, 64, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, 24)
    mask[0, 20:] = 0
    mask[0, 7:9] = 0
    keep = mask[0].bool()
    wanted = ptm_by_definition(logits[0][keep][:, keep].softmax(-1).numpy())
    assert confidence.ptm(logits, mask)[0] == pytest.approx(wanted, abs=1e-12)


def test_interface_ptm_by_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    chains = torch.tensor([0] * 5 + [1] * 8 + [2] * 9)
    logits = 3 * torch.randn(22, 22, 64, generator=generator, dtype=torch.float64)
    probabilities = logits.softmax(-1).numpy()

    def term(i: int, j: int, length: int) -> float:
        d0 = 1.24 * (max(length, 19) - 15) ** (1 / 3) - 1.8
        return sum(probabilities[i, j, b] / (1 + ((b + 0.5) * 0.5 / d0) ** 2) for b in range(64))

    def best(rows: int | None, columns: int | None, length: int) -> float:
        means = []
        for i in range(22):
            if rows is not None and chains[i] != rows:
                continue
            partners = [
                j for j in range(22) if (chains[j] == columns if columns is not None else chains[j] != chains[i])
            ]
            means.append(float(np.mean([term(i, j, length) for j in partners])))
        return max(means)

    iptm, pairs = confidence.interface_ptm(logits, chains)
    assert iptm == pytest.approx(best(None, None, 22), abs=1e-12)
    assert pairs[0, 2] == pairs[2, 0] == pytest.approx(max(best(0, 2, 14), best(2, 0, 14)), abs=1e-12)
    assert pairs[1, 1] == pytest.approx(best(1, 1, 8), abs=1e-12)


@pytest.mark.parametrize("name", ["1l2y_m2", "6KYTP_af1"])
def test_values_of_alphafolds_own_code(test_data, name) -> None:
    folder = test_data / "metrics" / "losses"
    arrays = np.load(folder / f"{name}.npz")
    scalars = json.loads((folder / "scalars_x64.json").read_text())[name]
    logits = torch.from_numpy(arrays["in_pair_logits_f16"].astype(np.float64))
    pae = confidence.predicted_aligned_error(logits)
    assert np.abs(pae.numpy() - arrays["out_pae_expected"]).max() < 1e-4
    assert confidence.ptm(logits[None], torch.ones(1, len(logits)))[0] == pytest.approx(scalars["ptm"], rel=1e-5)
    plddt = confidence.plddt(torch.from_numpy(arrays["in_plddt_logits"].astype(np.float64)))
    assert np.abs(plddt.numpy() - arrays["out_plddt_from_logits"]).max() < 1e-3
    chains = torch.from_numpy(arrays["in_asym_id"].astype(np.int64))
    iptm, _ = confidence.interface_ptm(logits, chains - chains.min())
    assert float(iptm) == pytest.approx(scalars["iptm"], rel=1e-5)
