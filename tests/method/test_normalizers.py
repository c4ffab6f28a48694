"""Means over a batch in parts: sums and counts of all parts together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apd.losses import masked_mean
from apd.normalizers import AccumulatedCounts, across_processes, global_count


@given(st.lists(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=5))
def test_shares_of_parts_in_turn_add_up_to_the_mean_of_the_whole(parts):
    values = [torch.tensor([value for value, _ in part], dtype=torch.float64) for part in parts]
    masks = [torch.tensor([valid for _, valid in part]) for part in parts]
    turns = AccumulatedCounts()
    for value, mask in zip(values, masks, strict=True):
        with turns.counting():
            masked_mean(value, mask)
    shares = []
    for value, mask in zip(values, masks, strict=True):
        with turns.computing():
            shares.append(masked_mean(value, mask))
    torch.testing.assert_close(sum(shares), masked_mean(torch.cat(values), torch.cat(masks)))


def test_several_means_of_a_part_keep_their_own_counts_and_divide_by_1_where_that_is_0():
    turns, counts = AccumulatedCounts(), [(3, 0), (5, 2)]
    for part in counts:
        with turns.counting():
            assert [global_count(torch.tensor(count)).item() for count in part] == [max(count, 1) for count in part]
    for part in counts:
        with turns.computing():
            assert [global_count(torch.tensor(count)).item() for count in part] == [8, 2]
    with pytest.raises(ZeroDivisionError), turns.counting():
        raise ZeroDivisionError
    assert global_count(torch.tensor(3)) == 3, "the rule outlived its context"


def test_a_mean_that_was_not_counted_or_not_computed_is_an_error():
    turns = AccumulatedCounts()
    with turns.counting():
        global_count(torch.tensor(1))
    with turns.computing():
        global_count(torch.tensor(1))
        with pytest.raises(RuntimeError, match="this mean was not counted"):
            global_count(torch.tensor(1))
    with pytest.raises(RuntimeError, match="1 counted means were not computed"), turns.computing():
        pass


def test_without_a_process_group_there_is_nothing_to_share_with():
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group first"), across_processes():
        pass
