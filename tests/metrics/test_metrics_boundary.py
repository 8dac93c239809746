"""How far a decision boundary lies from the middle of two class means: by hand, by its definition, and by laws."""

from __future__ import annotations

import pytest
import torch
from helpers import normal
from tolerances import assert_close

from lt_kernels.metrics import boundary_shift

NAN = float("nan")


def test_by_hand():
    """Boundary of classes 0 and 1: 2 x = o_0 - o_1, between the means 0 and 4."""
    weight, mean = torch.tensor([[3.0], [1.0], [1.0]]), torch.tensor([[4.0], [0.0], [7.0]])
    found = boundary_shift(weight, [6, 2, 0.0], mean)
    assert found[0, 1] == 0  # x = 2
    assert found[0, 2] == 5.5 - 3  # the boundary is at 3, the middle at 5.5, where class 0 is predicted
    assert found[2, 0] == -2.5
    assert found.diagonal().isnan().all()
    assert found[1, 2].isnan()  # equal weights have no boundary, or one anywhere
    assert boundary_shift(weight, [0, 2, 0], mean)[0, 1] == (2 * 2 - (0 - 2)) / 2


def test_is_the_definition_pair_by_pair():
    weight, mean, offset = normal(7, 4, seed=1), normal(7, 4, seed=2), normal(7, seed=3)
    found = boundary_shift(weight, offset, mean)
    assert found.dtype == torch.float64
    for j in range(7):
        for k in range(7):
            if j != k:
                normal_vector, middle = weight[j] - weight[k], (mean[j] + mean[k]) / 2
                signed = normal_vector @ middle - (offset[j] - offset[k])
                length = normal_vector.square().sum().sqrt()
                assert_close(found[j, k], signed / length)
                moved = middle - found[j, k] * normal_vector / length  # the nearest point of the boundary
                logits = weight @ moved - offset
                assert_close(logits[j], logits[k])


def test_laws():
    weight, mean, offset = normal(7, 4, seed=1), normal(7, 4, seed=2), normal(7, seed=3)
    found = boundary_shift(weight, offset, mean)
    assert torch.equal(found.nan_to_num(), -found.T.nan_to_num())
    assert_close(boundary_shift(weight, offset + 5, mean), found)
    assert_close(boundary_shift(3 * weight, 3 * offset, mean), found)
    assert_close(boundary_shift(weight, 3 * offset, 3 * mean), 3 * found)


def test_weights_at_the_means_with_their_offset_part_them_in_the_middle():
    mean = normal(9, 5, seed=1)
    found = boundary_shift(mean, mean.square().sum(1) / 2, mean)
    assert found.nan_to_num().abs().max() < 1e-13
    without = boundary_shift(mean, torch.zeros(9), mean)
    lengths = mean.square().sum(1)
    assert_close(without[3, 5] * (mean[3] - mean[5]).norm() * 2, lengths[3] - lengths[5])


def test_near_weights_keep_their_digits_and_a_class_without_mean_has_none():
    weight = torch.tensor([[1e8, 0.0], [1e8 + 1, 0.0], [0.0, 1.0]], dtype=torch.float64)
    mean = torch.tensor([[1.0, 0.0], [3.0, 0.0], [NAN, NAN]], dtype=torch.float64)
    found = boundary_shift(weight, torch.zeros(3), mean)
    assert_close(found[1, 0], torch.tensor(2.0).double())
    assert found[2].isnan().all()
    assert found[:, 2].isnan().all()


def test_values_only_of_any_dtype():
    weight, mean = normal(4, 3, seed=1).to(torch.bfloat16).requires_grad_(), normal(4, 3, seed=2).float()
    found = boundary_shift(weight, torch.tensor([1, 2, 3, 4]), mean)
    assert not found.requires_grad
    assert_close(found, boundary_shift(weight.detach().double(), [1.0, 2.0, 3.0, 4.0], mean.double()))


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((torch.ones(3), [0, 0, 0], torch.ones(3, 2)), "linear_weight"),
        ((torch.ones(3, 2), [0, 0], torch.ones(3, 2)), "offset must have 3 entries .* got 2"),
        ((torch.ones(3, 2), torch.zeros(3, 1), torch.ones(3, 2)), "offset"),
        ((torch.ones(3, 2), [0, 0, 0], torch.ones(2, 2)), r"mean must be \[3, 2\]"),
        ((torch.ones(3, 2), [0, 0, 0], [[1.0]]), "mean"),
    ],
)
def test_errors_name_the_argument(arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        boundary_shift(*arguments)
