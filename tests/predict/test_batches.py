"""Batches: bounded, complete, and the same whatever is finished already or however many jobs share the work."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protfold_peft.folding.batches import MAX_PADDING, MAX_PADDING_SHORT, n_tokens, plan_batches, select_shard
from protfold_peft.folding.types import Record

lengths = st.lists(st.integers(1, 120), max_size=60)


def records_of(lengths: list[int]) -> list[Record]:
    return [Record(f"r{number}", "A" * length) for number, length in enumerate(lengths)]


@given(lengths, st.integers(1, 300))
def test_every_record_is_in_one_batch_within_the_bound(lengths, max_tokens):
    records = records_of(lengths)
    batches = plan_batches(records, max_tokens)
    assert sorted(r.name for batch in batches for r in batch) == sorted(r.name for r in records)
    for batch in batches:
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= max_tokens
        assert len(batch[-1]) - len(batch[0]) <= max(MAX_PADDING * len(batch[-1]), MAX_PADDING_SHORT)
    # Another record would not have fitted: the next batch's shortest makes this one too large, or too uneven.
    for batch, following in pairwise(batches):
        length = len(following[0])
        uneven = length - len(batch[0]) > max(MAX_PADDING * length, MAX_PADDING_SHORT)
        assert uneven or (len(batch) + 1) * length > max_tokens


@given(lengths, st.integers(1, 300), st.randoms())
def test_the_order_of_the_input_does_not_matter(lengths, max_tokens, random):
    records = records_of(lengths)
    shuffled = random.sample(records, len(records))
    assert plan_batches(records, max_tokens) == plan_batches(shuffled, max_tokens)


@given(lengths, st.integers(1, 9))
def test_shards_share_the_batches_of_the_whole(lengths, num_shards):
    batches = plan_batches(records_of(lengths), 200)
    shards = [select_shard(batches, shard, num_shards) for shard in range(num_shards)]
    assert sorted((b for shard in shards for b in shard), key=batches.index) == batches


def test_the_linkers_of_a_complex_count():
    assert n_tokens(Record("c", "AAAA:AAA:AA")) == 9 + 2 * 25
