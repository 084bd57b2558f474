"""Exercises of notebook 9: rollout, integrated gradients by hand, and a map beside chance."""

import torch
from torch import Tensor

from mmpt.exercises.check import exercise, tensor


def _layers(rng):
    L, T = rng.randint(2, 4), rng.randint(3, 6)
    return (2 * tensor(rng, L, T, T) + torch.full((T, T), -torch.inf).triu(1)).softmax(-1)  # causal


def _without_residual(weights):
    return _followed(weights)


def _upside_down(weights):
    return last_row_of_rollout(weights.flip(0))


def _first_row(weights):
    return _followed(_halved(weights), row=0)


def _mean(weights):
    return _halved(weights).mean(0)[-1]


def _halved(weights):
    return 0.5 * weights + 0.5 * torch.eye(weights.shape[-1])


def _followed(mixing, row=-1):
    flow = mixing[-1][row]
    for layer in mixing[:-1].flip(0):
        flow = flow @ layer
    return flow


@exercise(
    "last_row_of_rollout",
    lambda rng: (_layers(rng),),
    (_without_residual, "the residual stream is missing: half of a state is what the position held before."),
    (_upside_down, "the order is wrong: start from the last layer's row, then go back to the first layer."),
    (_first_row, "that is the first position's row, which sees itself alone; the last position's is asked."),
    (_mean, "this averages the layers; following attention back through them is a product."),
)
def last_row_of_rollout(weights: Tensor) -> Tensor:
    return _followed(_halved(weights))


def _path(rng):
    K, n = rng.randint(3, 6), rng.randint(2, 5)
    return tensor(rng, K + 1, n), tensor(rng, n), tensor(rng, n) + 3


def _gradient_times_input(gradients, x, baseline):
    return gradients[-1] * x


def _without_difference(gradients, x, baseline):
    return _trapezoid(gradients)


def _input_only(gradients, x, baseline):
    return _trapezoid(gradients) * x


def _all_alike(gradients, x, baseline):
    return gradients.mean(0) * (x - baseline)


def _summed(gradients, x, baseline):
    return integrate(gradients, x, baseline) * (len(gradients) - 1)


def _trapezoid(gradients):
    return (gradients[1:] + gradients[:-1]).mean(0) / 2


@exercise(
    "integrate",
    _path,
    (_gradient_times_input, "this is gradient × input, at the end of the way only; the mean along the way is asked."),
    (_without_difference, "the gradients' mean is right; now multiply by how far each number went, x − x′."),
    (_input_only, "the factor is how far each number went, x − x′; this takes x, as if the baseline were 0."),
    (_all_alike, "under the trapezoidal rule the two ends of the way count one half each."),
    (_summed, "this is the sum over the pieces of the way; divide it by their number."),
)
def integrate(gradients: Tensor, x: Tensor, baseline: Tensor) -> Tensor:
    return _trapezoid(gradients) * (x - baseline)


def _curves(rng):
    K, R = rng.randint(3, 6), rng.randint(4, 8)
    steps = tensor(rng, K).abs() + 0.1
    shares = torch.cat([torch.zeros(1), steps.cumsum(0) / steps.sum()])  # unequal steps
    random = tensor(rng, R, K + 1).sigmoid()
    return shares, random.mean(0) + 0.1 * tensor(rng, K + 1), random


def _as_insertion(shares, values, random):
    area, share = beaten(shares, values, random)
    return area, 1 - share


def _of_points(shares, values, random):
    return beaten(torch.linspace(0, 1, len(shares)), values, random)


def _as_mean(shares, values, random):
    return values.mean().item(), (random.mean(1) > values.mean()).float().mean().item()


def _pointwise(shares, values, random):
    return beaten(shares, values, random)[0], (random > values).float().mean().item()


@exercise(
    "beaten",
    _curves,
    (_as_insertion, "this counts the orders that are better than the map: in deletion a small area speaks for a map."),
    (_of_points, "the steps are not all of one size; hand torch.trapezoid the shares, too."),
    (_as_mean, "a mean of points is not an area: the points do not lie evenly, and the ends count one half."),
    (_pointwise, "compare areas, one for each random order, not the curves point by point."),
)
def beaten(shares: Tensor, values: Tensor, random: Tensor) -> tuple[float, float]:
    area, areas = torch.trapezoid(values, shares), torch.trapezoid(random, shares)
    return area.item(), (areas > area).float().mean().item()
