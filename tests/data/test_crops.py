"""Samples are a function of (seed, step, sample), and of nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from protfold_peft.data import (
    Crop,
    CropDataset,
    PartDataset,
    collate_chains,
    collate_crops,
    collate_parts,
    random_crop,
    training_chain,
)
from protfold_peft.data.crops import HIDDEN


@pytest.fixture
def chains(make_chain) -> list[Any]:
    """Lengths 30, 8 and 50; the last with residues 10 to 44 unresolved."""
    return [
        training_chain(make_chain("AGW" * 10), "thirty"),
        training_chain(make_chain("AGWAGWAG"), "eight"),
        training_chain(make_chain("A" * 15, seqres="A" * 50, seqres_index=[*range(10), *range(45, 50)]), "unresolved"),
    ]


def dataset(chains: list[Any], **changes: Any) -> CropDataset:
    return CropDataset(chains, **{"crop_size": 12, "batch_size": 2, "steps": 30, "seed": 5, **changes})


def fingerprint(crop: Crop) -> tuple[str, int, int, bool]:
    return crop.chain.name, int(crop.chain.residue_index[0]), len(crop.chain), crop.clamped


def test_the_same_samples_again_and_in_any_order(chains) -> None:
    first, second = dataset(chains), dataset(chains)
    forwards = [fingerprint(first[k]) for k in range(len(first))]
    backwards = [fingerprint(second[k]) for k in reversed(range(len(second)))]
    assert forwards == backwards[::-1]
    assert forwards != [fingerprint(crop) for crop in dataset(chains, seed=6)]


def test_a_longer_run_begins_with_the_shorter(chains) -> None:
    short, long = dataset(chains, steps=10), dataset(chains, steps=30)
    assert [fingerprint(short[k]) for k in range(20)] == [fingerprint(long[k]) for k in range(20)]


def test_workers_change_nothing(chains) -> None:
    loaded = [
        list(DataLoader(dataset(chains, steps=6), batch_size=2, num_workers=workers, collate_fn=collate_crops))
        for workers in (0, 2)
    ]
    assert len(loaded[0]) == len(loaded[1]) == 6
    for alone, shared in zip(*loaded):
        assert alone.keys() == shared.keys()
        assert all(torch.equal(alone[key], shared[key]) for key in alone)


def test_chains_take_turns(chains) -> None:
    samples = dataset(chains)
    names = [samples[k].chain.name for k in range(60)]
    assert all(len(set(names[turn : turn + 3])) == 3 for turn in range(0, 60, 3))
    assert len({tuple(names[turn : turn + 3]) for turn in range(0, 60, 3)}) > 2  # not always in one order


def test_crops_are_contiguous_and_uniform_over_those_with_something_to_learn(chains) -> None:
    rng = np.random.default_rng(0)
    unresolved = chains[2]
    starts = Counter()
    for _ in range(4000):
        crop = random_crop(unresolved, 12, rng)
        assert (np.diff(crop.residue_index) == 1).all()
        assert len(crop) == 12
        assert crop.has_frame.sum() >= 2
        starts[int(crop.residue_index[0])] += 1
    # Windows of 12 out of 50: starts 0..8 hold two or more of residues 0..9, starts 35..38 of residues 45..49.
    assert sorted(starts) == [*range(9), *range(35, 39)]
    assert max(starts.values()) < 1.4 * min(starts.values())
    assert random_crop(chains[1], 12, rng) is chains[1]


def test_clamped_fraction(chains) -> None:
    samples = dataset(chains, steps=500)
    assert 0.87 < np.mean([samples[k].clamped for k in range(1000)]) < 0.93
    assert not any(crop.clamped for crop in (dataset(chains, clamped_fraction=0.0)[k] for k in range(60)))


def test_padding_is_on_the_right_only(chains) -> None:
    batch = collate_chains(chains)
    assert batch["input_ids"].shape == (3, 50)
    for row, chain in enumerate(chains):
        n = len(chain)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (50 - n)
        assert batch["input_ids"][row, :n].tolist() == chain.aatype.tolist()
        assert batch["position_ids"][row, :n].tolist() == chain.residue_index.tolist()
        assert (batch["position_ids"][row].diff() > 0).all()
        assert not batch["atom_mask"][row, n:].any()
        np.testing.assert_array_equal(batch["atom_positions"][row, :n].numpy(), chain.atom_positions)
    # Unresolved residues are input, and no target.
    assert batch["attention_mask"][2].all()
    assert not batch["atom_mask"][2, 10:45].any()


def names(crops: Any) -> list[tuple[str, int, int, bool]]:
    return [fingerprint(crop) for crop in crops]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_make_up_the_step_whatever_their_number(chains, parts: int) -> None:
    """The weighted mean over the parts of a step is the mean over its samples."""
    samples = dataset(chains, batch_size=4, steps=5)
    split = PartDataset(samples, parts)
    assert len(split) == 5 * parts
    for step in range(5):
        own = [split[step * parts + part] for part in range(parts)]
        found = sorted(fingerprint for part in own for fingerprint in names(part.crops))
        assert found == sorted(fingerprint(samples[4 * step + i]) for i in range(4))
        assert [(part.step, part.number) for part in own] == [(step, step * parts + i) for i in range(parts)]
        lengths = [len(samples[4 * step + i].chain) for i in range(4)]
        means = [np.mean([len(crop.chain) for crop in part.crops]) * part.share for part in own]
        assert np.mean(means) == pytest.approx(np.mean(lengths))


def test_token_batches_hold_every_chain_once_a_turn_and_keep_to_the_budget(make_chain) -> None:
    lengths = [5, 9, 9, 14, 20, 21, 33, 40]
    chains = [training_chain(make_chain("A" * length), str(length)) for length in lengths]
    samples = dataset(chains, crop_size=30, steps=200)
    split = PartDataset(samples, 1, tokens=45, lengths=lengths)
    steps = [split.samples(step) for step in range(60)]
    flat = [k for numbers in steps for k in numbers]
    assert len(flat) == len(set(flat))
    turns = max(flat) // len(chains)
    assert set(range(turns * len(chains))) <= set(flat)
    for numbers in steps:
        own = [min(lengths[samples.place(k)], 30) for k in numbers]
        assert len(own) * max(own) <= 45
    assert any(len(numbers) > 2 for numbers in steps)
    # In any order, and on another machine, the steps are the same.
    again = PartDataset(dataset(chains, crop_size=30, steps=200), 1, tokens=45, lengths=lengths)
    assert [again.samples(step) for step in reversed(range(60))] == steps[::-1]
    assert steps[: len(steps) // 2] != steps[len(steps) // 2 :]


def test_clusters_take_turns_and_each_gives_one_chain(chains) -> None:
    """Two chains of one cluster together are drawn as often as the third alone."""
    samples = dataset(chains, groups=[[0, 1], [2]], steps=300)
    count = Counter(samples[k].chain.name for k in range(600))
    assert count["unresolved"] == 300
    assert count["thirty"] + count["eight"] == 300
    assert 100 < count["thirty"] < 200


def test_hidden_residues_are_drawn_from_the_sample(chains) -> None:
    """15 % are asked for, of which 80 % are hidden; the same in any order."""
    samples = dataset(chains, masked=True, crop_size=50, steps=200)
    asked = hidden = 0
    for k in range(400):
        crop = samples[k]
        assert torch.equal(crop.masked.tokens, samples[k].masked.tokens)
        asked += int(crop.masked.chosen.sum())
        hidden += int((crop.masked.tokens == HIDDEN).sum())
        kept = ~crop.masked.chosen
        assert torch.equal(crop.masked.tokens[kept], torch.from_numpy(crop.chain.aatype)[kept])
    assert 0.76 < hidden / asked < 0.84
    batch = collate_parts([PartDataset(samples, 1)[0]])
    assert batch["masked_ids"].shape == batch["input_ids"].shape == batch["masked_chosen"].shape
    assert not batch["masked_chosen"][batch["attention_mask"] == 0].any()
