"""Damaged files: each is read, or refused in one line that names it; nothing else may come out of a reader.

A few damages of every kind are tried at each run, the same ones every time; `pytest -m slow` tries many, other ones.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import damaged
from readers import Reader, damage_into, make_readers, read_damaged

NAMES = (
    *("pdb", "mmcif", "fasta", "finetune_yaml", "compare_yaml", "mlm_yaml", "adapter", "adapter_load", "lora_load"),
    *("model", "fair_esm", "pairs", "table", "records"),
)
_SLOW_EXAMPLES = int(os.environ.get("PROTFOLD_FUZZ_EXAMPLES", "400"))
_SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    data = os.environ.get("PROTFOLD_TEST_DATA")
    awkward = Path(data) / "metrics" / "io" if data else None
    return make_readers(tmp_path_factory.mktemp("seeds"), awkward if awkward and awkward.is_dir() else None)


def check(reader: Reader, seed: int, folder: Path) -> None:
    """Damage one of the reader's files and read it."""
    source = reader.seeds[seed % len(reader.seeds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_damaged(reader, source, damaged(source.read_bytes(), seed), folder)


def test_every_reader_is_tried(readers):
    assert set(readers) == set(NAMES)
    assert all(reader.seeds for reader in readers.values())


@pytest.mark.parametrize("name", NAMES)
def test_undamaged_files_are_read(readers, tmp_path, name):
    """Otherwise the refusals below would say nothing."""
    if name in ("pdb", "mmcif"):
        seeds = [seed for seed in readers[name].seeds if seed.parent.name == "structures"]
    else:
        seeds = list(readers[name].seeds)
    for place, seed in enumerate(seeds):
        readers[name].read(damage_into(readers[name], seed, seed.read_bytes(), tmp_path / str(place)))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_in_one_line(readers, tmp_path, name):
    @settings(max_examples=12, derandomize=True, **_COMMON)
    @given(seed=_SEEDS)
    def run(seed: int) -> None:
        check(readers[name], seed, tmp_path / "damaged")

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files_are_read_or_refused_in_one_line(readers, tmp_path, name):
    @settings(max_examples=_SLOW_EXAMPLES, **_COMMON)
    @given(seed=_SEEDS)
    def run(seed: int) -> None:
        check(readers[name], seed, tmp_path / "damaged")

    run()
