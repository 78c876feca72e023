import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.coupled_ridge import CoupledRidge
from gera_lightning.aligners.kernel_ridge import KernelRidge, RbfMap, rbf
from gera_lightning.aligners.manifold_ridge import ManifoldRidge
from gera_lightning.utils.errors import UserError


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def samples(n=10, dtype=torch.float64):
    return FitData(
        cloud(n, 5, 0, dtype), cloud(n, 4, 1, dtype), cloud(3, 5, 2, dtype), cloud(3, 4, 3, dtype)
    )


def median_d2(x):
    d2 = [((x[i] - x[j]) ** 2).sum() for i in range(len(x)) for j in range(i)]
    assert len(d2) % 2 == 1  # so that there is one median only
    return float(np.median(d2))


def test_the_kernel_equals_slow_loops():
    x, y = cloud(4, 5), cloud(6, 5, 1)
    slow = [[np.exp(-((u - v) ** 2).sum() / 3.0) for v in y.numpy()] for u in x.numpy()]
    np.testing.assert_allclose(rbf(x, y, 3.0), slow, rtol=1e-10)
    torch.testing.assert_close(rbf(x, x, 1e-3).diagonal(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "setting",
    [
        {"penalty": 1.0, "factor": 4.0},
        {"penalty": 0.01, "factor": 1.0},
        {"penalty": 0.1, "factor": 0.3},
    ],
)
def test_maps_equal_scikit_learn(setting, dtype):
    given = samples(dtype=dtype)
    [(map_a, map_b)] = KernelRidge().candidates(given, [setting])
    new_a, new_b = cloud(6, 5, 7), cloud(6, 4, 8)
    for x, y, new, mapping in (
        (given.x_a, given.x_b, new_a, map_a.maps[0]),
        (given.x_b, given.x_a, new_b, map_b.maps[1]),
    ):
        x, y = x.double().numpy(), y.double().numpy()
        gamma = 1 / (setting["factor"] * median_d2(x))
        expected = (
            SklearnKernelRidge(alpha=setting["penalty"], kernel="rbf", gamma=gamma)
            .fit(x, y)
            .predict(new.numpy())
        )
        (
            np.testing.assert_allclose(mapping(new.to(dtype)), expected, rtol=1e-7, atol=1e-8)
            if dtype == torch.float64
            else (
                np.testing.assert_allclose(mapping(new.to(dtype)), expected, rtol=1e-3, atol=1e-4)
            )
        )


@pytest.mark.parametrize("direction", ["both", "a_to_b", "b_to_a"])
def test_candidates_follow_their_settings_in_order(direction, in_order):
    in_order(KernelRidge(direction), samples(), 10)


def test_a_small_penalty_interpolates_the_pairs_and_a_large_one_shrinks_to_nothing():
    given = samples()
    [(close, _), (far, _)] = KernelRidge("a_to_b").candidates(
        given, [{"penalty": p, "factor": 0.5} for p in (1e-9, 1e9)]
    )
    torch.testing.assert_close(close(given.x_a), given.x_b, atol=1e-5, rtol=1e-5)
    assert float(far(given.x_a).abs().max()) < 1e-6


def test_identical_pairs_keep_the_map_finite():
    given = FitData(
        torch.ones(6, 5), cloud(6, 4, 1, torch.float32), torch.zeros(0, 5), torch.zeros(0, 4)
    )
    for map_a, map_b in KernelRidge().candidates(given, KernelRidge().settings(8, 6)):
        assert map_a(cloud(3, 5, 2, torch.float32)).isfinite().all()
        assert map_b(cloud(3, 4, 2, torch.float32)).isfinite().all()


def test_settings_go_from_the_strongest_penalty_and_widest_kernel():
    settings = KernelRidge(factors=(4.0, 1.0), smallest=0.01, largest=1.0).settings(6, 10)
    np.testing.assert_allclose(
        [(s["penalty"], s["factor"]) for s in settings],
        [(1, 4), (1, 1), (0.1, 4), (0.1, 1), (0.01, 4), (0.01, 1)],
    )
    assert len(KernelRidge().settings(1, 10)) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"direction": "b"}, "direction='b'"),
        ({"smallest": -1.0}, "smallest"),
        ({"factors": ()}, "factors"),
        ({"factors": (0.0,)}, "above 0"),
    ],
)
def test_impossible_fields_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        KernelRidge(**settings)


def test_an_empty_map_takes_weights():
    full = RbfMap(cloud(4, 5), cloud(4, 3, 1), 2.0)
    empty = RbfMap(**full.settings).double()
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty(cloud(2, 5, 2)), full(cloud(2, 5, 2)))


@pytest.mark.parametrize("method", [KernelRidge(), CoupledRidge(), ManifoldRidge(kernel=True)])
def test_more_pairs_than_there_is_room_for_are_refused(method):
    assert method.settings(2, 100)
    with pytest.raises(
        UserError,
        match=r"1000\d000 pairs: their kernel matrices take about \d+ GiB, .*ridge or contrastive",
    ):
        method.settings(2, 10_000_000)
    assert ManifoldRidge().settings(2, 10_000_000)  # whose matrices are of the widths
