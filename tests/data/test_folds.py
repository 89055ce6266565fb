"""Folds leave out parts of the same size, each row at most once."""

import numpy as np
import pytest

from np_latentode.data.folds import folds


@pytest.mark.parametrize(("count", "num_folds"), [(10, 5), (11, 5), (6, 5), (40, 3)])
def test_each_row_is_left_out_at_most_once_in_folds_of_the_same_size(count, num_folds):
    made = folds(count, num_folds)
    assert {len(fold) for fold in made} == {count // num_folds}
    every = np.concatenate(made)
    assert len(np.unique(every)) == len(every) == count // num_folds * num_folds


@pytest.mark.parametrize(("count", "left_out"), [(70, 10), (6, 1), (2, 1), (1, 0)])
def test_one_fold_leaves_out_a_seventh_but_never_none_or_all_of_several(count, left_out):
    (fold,) = folds(count, 1)
    assert len(fold) == left_out


def test_a_fold_has_at_most_so_many_random_rows():
    few, all = folds(100, 4, most=5), folds(100, 4)
    assert [len(fold) for fold in few] == [5] * 4
    assert len(np.unique(np.concatenate(few))) == 20
    assert [fold.tolist() for fold in folds(100, 4, most=25)] == [fold.tolist() for fold in all]
