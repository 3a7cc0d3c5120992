"""Out of memory and other trouble: every record gets exactly one outcome, and only those in trouble fail."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from protfold_peft.errors import NonFiniteError
from protfold_peft.folding.markers import Failed
from protfold_peft.folding.recovery import CHUNK_SIZES, Folded, Folder, is_out_of_memory
from protfold_peft.folding.types import Prediction, Record
from protfold_peft.structure.types import Structure


class FakeModel:
    """A model with room for `room` residues at once; a chunk size of `c` makes a residue take `c / 128` of its room."""

    def __init__(self, room: float, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error = room, error
        self.base = SimpleNamespace(trunk=SimpleNamespace(chunk_size=None))
        self.calls: list[tuple[list[str], int | None]] = []

    def set_chunk_size(self, size: int | None) -> None:
        self.base.trunk.chunk_size = size

    def predict(self, batch):
        chunk = self.base.trunk.chunk_size
        self.calls.append(([record.name for record in batch], chunk))
        if max(map(len, batch)) * len(batch) * (1.0 if chunk is None else chunk / 256) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        for record in batch:
            if "nan" in record.name:
                raise NonFiniteError(f"{record.name}: the model's PAE hold NaN or infinity")
            if "bug" in record.name:
                raise ValueError("shapes\ndo not match")
        return [prediction_of(record) for record in batch]


def prediction_of(record: Record) -> Prediction:
    n = len(record)
    return Prediction(record, Structure(record.name, ()), np.ones(n), 0.5, None, None, np.ones((n, n)), 31.75)


def fold(model: FakeModel, batch: list[Record]):
    outcomes = list(Folder(model, model.predict).fold(batch))
    done = [each.prediction.record.name for each in outcomes if isinstance(each, Folded)]
    failed = {each.name: each.error for each in outcomes if isinstance(each, Failed)}
    return done, failed


def records(*lengths: int, prefix: str = "r") -> list[Record]:
    return [Record(f"{prefix}{number}", "A" * length) for number, length in enumerate(lengths)]


def test_a_batch_that_does_not_fit_is_split_and_every_record_done_once_in_order():
    model = FakeModel(room=25)
    assert fold(model, records(10, 10, 10, 10, 10)) == (["r0", "r1", "r2", "r3", "r4"], {})
    assert all(chunk is None for _, chunk in model.calls)


def test_a_single_record_is_folded_in_smaller_and_smaller_chunks():
    model = FakeModel(room=25)
    assert fold(model, records(100)) == (["r0"], {})
    assert [chunk for _, chunk in model.calls] == [None, 128, 64]
    assert model.base.trunk.chunk_size is None


def test_a_longer_record_starts_where_a_shorter_one_ended():
    model = FakeModel(room=25)
    folder = Folder(model, model.predict)
    list(folder.fold(records(100)))
    model.calls.clear()
    list(folder.fold(records(110)))
    assert [chunk for _, chunk in model.calls] == [64, 32]
    list(folder.fold(records(20)))
    assert model.calls[-1][1] is None


def test_what_does_not_fit_at_all_fails_and_the_rest_goes_on():
    model = FakeModel(room=25)
    done, failed = fold(model, [*records(10, 10), Record("giant", "A" * 10_000)])
    assert done == ["r0", "r1"]
    assert list(failed) == ["giant"]
    assert "out of memory with 10000 residues" in failed["giant"]
    assert model.calls[-1] == (["giant"], CHUNK_SIZES[-1])
    assert model.base.trunk.chunk_size is None


def test_a_chunk_size_in_force_is_the_start_and_is_kept():
    model = FakeModel(room=10)
    model.set_chunk_size(64)
    assert fold(model, records(100)) == (["r0"], {})
    assert [chunk for _, chunk in model.calls] == [64, 32, 16]
    assert model.base.trunk.chunk_size == 64


def test_a_record_that_gives_nan_costs_no_other():
    done, failed = fold(FakeModel(room=1e9), [*records(5, 6), Record("nan", "AAAA"), *records(7, prefix="s")])
    assert done == ["r0", "r1", "s0"]
    assert failed == {"nan": "nan: the model's PAE hold NaN or infinity"}


def test_an_unexpected_error_is_one_line_and_costs_no_other():
    done, failed = fold(FakeModel(room=1e9), [*records(5), Record("bug", "AAAA")])
    assert done == ["r0"]
    assert failed == {"bug": "ValueError: shapes do not match"}


def test_an_interruption_is_no_trouble_of_a_record():
    def interrupted(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Folder(FakeModel(1), interrupted).fold(records(3)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_allocation_that_cannot_be_met_is_told():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
