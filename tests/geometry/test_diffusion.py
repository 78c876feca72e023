import dataclasses
import itertools

import numpy as np
import pytest
import torch

from gera_lightning.geometry.diffusion import DiffusionOperator, effective_neighbors
from gera_lightning.geometry.kernels import BANDWIDTHS, KERNELS, squared_distances
from gera_lightning.utils.errors import UserError


def cloud(n=40, d=6, seed=0, dtype=torch.float64):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def slow_operator(x, kernel, factor, alpha, power):
    """One patch in plain loops, patch bandwidth."""
    m = len(x)
    d2 = np.array([[((x[j] - x[k]) ** 2).sum() for k in range(m)] for j in range(m)])
    eps = factor * d2.sum() / (m * (m - 1))
    forms = {
        "heat": lambda v: np.exp(-v / eps),
        "student": lambda v: 1 / (1 + v / eps),
        "laplacian": lambda v: np.exp(-np.sqrt(v / eps)),
    }
    w = forms[kernel](d2)
    q = w.sum(1)
    w = w / np.outer(q, q) ** alpha
    p = w / w.sum(1, keepdims=True)
    out = np.eye(m)
    for _ in range(power):
        out = out @ p
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kernel", "alpha", "power"), list(itertools.product(KERNELS, (0.0, 0.5, 1.0), (1, 3)))
)
def test_operator_equals_slow_loops(kernel, alpha, power, dtype):
    x = cloud(10, dtype=dtype).view(2, 5, 6)
    p = DiffusionOperator(kernel, factor=0.7, alpha=alpha, power=power)(squared_distances(x))
    for i in range(2):
        np.testing.assert_allclose(
            p[i],
            slow_operator(x[i].double().numpy(), kernel, 0.7, alpha, power),
            rtol=1e-4,
            atol=1e-6,
        )


@pytest.mark.parametrize(("kernel", "rule"), list(itertools.product(KERNELS, BANDWIDTHS)))
def test_rows_sum_to_one_and_points_can_be_renumbered(kernel, rule):
    d2 = squared_distances(cloud(12).view(2, 6, 6))
    operator = DiffusionOperator(kernel, rule, factor=0.5, neighbor=3)
    p = operator(d2, scale=0.8)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 6, dtype=p.dtype))
    assert (p >= 0).all()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        operator(d2[:, order][:, :, order], scale=0.8), p[:, order][:, :, order]
    )


@pytest.mark.parametrize(("kernel", "rule"), list(itertools.product(KERNELS, BANDWIDTHS)))
def test_calibration_leaves_half_the_patch_in_sight(kernel, rule):
    d2 = squared_distances(cloud(51).view(3, 17, 6))
    operator = DiffusionOperator(kernel, rule).calibrated(d2, scale=0.9)
    seen = float(effective_neighbors(operator(d2, scale=0.9)).mean())
    wider = dataclasses.replace(operator, factor=operator.factor * 1.05)
    assert seen <= 17 / 2
    assert operator.calibrated(d2 / 2) is operator, "a factor that is given is kept"
    torch.testing.assert_close(
        DiffusionOperator(kernel, rule)(d2, scale=0.9), operator(d2, scale=0.9)
    )
    assert float(effective_neighbors(wider(d2, scale=0.9)).mean()) > 17 / 2 - 0.2


def test_effective_neighbors_of_known_rows():
    p = torch.tensor(
        [[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4]
    ).unsqueeze(0)
    torch.testing.assert_close(effective_neighbors(p)[0], torch.tensor([4.0, 1.0, 2.0, 4.0]))


def test_alpha_one_forgets_the_sampling_density():
    """On a circle sampled unevenly, with a fixed bandwidth and M = N, P f - f at alpha = 1 follows
    the circle's Laplacian whatever the density; at alpha = 0 it is pulled towards the dense side
    (Coifman & Lafon 2006).
    """
    u = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    angle = 2 * torch.pi * u + 0.5 * torch.sin(2 * torch.pi * u)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    d2 = squared_distances(x.unsqueeze(0))
    error = {}
    for alpha in (0.0, 1.0):
        p = DiffusionOperator("heat", "fixed", factor=0.01, alpha=alpha)(d2)[0]
        # heat exp(-d2/eps): P ~ 1 + eps/4 Laplacian, and the circle's Laplacian of sin is -sin
        drift = (p @ angle.sin() - angle.sin()) / (0.01 / 4)
        error[alpha] = float((drift + angle.sin()).abs().mean())
    assert error[1.0] < 0.1
    assert error[0.0] > 3 * error[1.0]


@pytest.mark.parametrize("loops", [True, False])
def test_calibration_takes_the_upper_branch_where_rows_turn_flat_at_both_ends(loops):
    """Without self-loops all affinities of a row vanish at a tiny factor, and it is flat again."""
    d2 = squared_distances(cloud(51).view(3, 17, 6))
    tiny = DiffusionOperator(factor=1e-6, self_loops=loops)
    assert float(effective_neighbors(tiny(d2)).mean()) == pytest.approx(
        1 if loops else 16, rel=0.01
    )
    factor = DiffusionOperator(self_loops=loops).calibrated(d2).factor
    tried = torch.logspace(-3, 2, 2000)
    seen = torch.tensor(
        [
            float(effective_neighbors(DiffusionOperator(factor=f, self_loops=loops)(d2)).mean())
            for f in tried.tolist()
        ]
    )
    assert factor == pytest.approx(float(tried[seen <= 17 / 2].max()), rel=0.011)


def test_where_every_factor_sees_too_much_the_one_that_sees_least_is_taken():
    """Points all as far from each other: no kernel tells neighbours from strangers."""
    d2 = 1 - torch.eye(5, dtype=torch.float64)
    operator = DiffusionOperator(self_loops=False).calibrated(d2)
    assert float(effective_neighbors(operator(d2)).mean()) == pytest.approx(4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("kernel", "gauss"), ("bandwidth", "patches"), ("alpha", 2.0), ("power", 0), ("factor", -1.0)],
)
def test_operator_settings_are_checked(key, value):
    with pytest.raises(UserError) as error:
        DiffusionOperator(**{key: value})
    assert (error.value.key, error.value.value) == (key, value)
