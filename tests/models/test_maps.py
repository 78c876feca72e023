import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from gera_lightning.aligners.asif import RelativeMap
from gera_lightning.aligners.cca import WeightedCosine
from gera_lightning.aligners.coupled_ridge import CoupledMap
from gera_lightning.aligners.kernel_ridge import RbfMap
from gera_lightning.filters import GraphDiffusion, LocalCentering
from gera_lightning.models.maps import (
    MAPS,
    Concat,
    Identity,
    Linear,
    Normalize,
    ResidualMLP,
    Sequential,
    build_map,
    describe_map,
    normalized,
)
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.utils.errors import UserError


def cloud(n=12, d=5, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_unit(x):
    return np.stack([row / np.sqrt((row**2).sum()) for row in x])


def test_normalized_rows_have_unit_length_and_a_zero_row_stays_zero():
    x = cloud(dtype=torch.float64)
    np.testing.assert_allclose(normalized(x), slow_unit(x.numpy()), rtol=1e-12)
    assert torch.equal(normalized(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("center", [True, False])
def test_preprocessing_equals_its_formula_and_remembers_the_training_rows(center):
    train, new = cloud(dtype=torch.float64) + 0.7, cloud(3, seed=1, dtype=torch.float64) + 0.7
    mean = slow_unit(train.numpy()).sum(0) / len(train) if center else 0
    preprocess = Preprocessing.fit(train, center)
    np.testing.assert_allclose(
        preprocess(new), slow_unit(slow_unit(new.numpy()) - mean), rtol=1e-10
    )
    torch.testing.assert_close(
        preprocess(new[:1]), preprocess(new)[:1]
    )  # a row's image does not depend on its company
    torch.testing.assert_close(preprocess(7 * new), preprocess(new))
    assert list(preprocess.state_dict()) == (["mean"] if center else [])


@pytest.mark.parametrize(("dim_in", "dim"), [(6, 4), (4, 6), (5, 5)])
def test_linear_starts_orthogonal_and_is_drawn_from_its_generator(dim_in, dim):
    weight = Linear(dim_in, dim, generator=generator()).weight.detach()
    small = weight.T @ weight if dim <= dim_in else weight @ weight.T
    torch.testing.assert_close(small, torch.eye(min(dim_in, dim)), atol=1e-5, rtol=0)
    torch.manual_seed(99)
    assert torch.equal(Linear(dim_in, dim, generator=generator()).weight, weight)
    assert not torch.equal(Linear(dim_in, dim, generator=generator(1)).weight, weight)


def test_linear_is_a_product_and_owns_its_start():
    weight = cloud(5, 3, seed=1)
    linear = Linear(5, 3, weight=weight)
    np.testing.assert_allclose(
        linear(cloud()).detach(), cloud().numpy() @ weight.numpy(), rtol=1e-5, atol=1e-6
    )
    kept = weight.clone()
    weight.zero_()
    assert torch.equal(linear.weight, kept)
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        Linear(3, 5, weight=kept)


def test_a_residual_mlp_starts_as_its_linear_part():
    weight = cloud(5, 3, seed=1)
    mlp = ResidualMLP(5, 3, hidden=8, dropout=0.5, weight=weight, generator=generator())
    assert torch.equal(
        mlp(cloud()), Linear(5, 3, weight=weight)(cloud())
    )  # in training mode too: the branch is zero


def test_a_residual_mlp_equals_its_formula():
    mlp = ResidualMLP(5, 3, hidden=8, dropout=0.5, generator=generator()).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(mlp.parameters()):
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator(number), dtype=torch.float64)
            )
    w, v, c, u = (
        p.detach().numpy() for p in (mlp.linear.weight, mlp.inner, mlp.inner_bias, mlp.outer)
    )
    x = cloud(dtype=torch.float64).numpy()
    gelu = np.vectorize(lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2)
    np.testing.assert_allclose(
        mlp(torch.from_numpy(x)).detach(), x @ w + gelu(x @ v + c) @ u, rtol=1e-10
    )


def test_chain_applies_its_maps_in_order():
    first, second = (
        Linear(5, 3, generator=generator()),
        ResidualMLP(3, 4, hidden=6, generator=generator(1)),
    )
    assert torch.equal(Sequential(first, second)(cloud()), second(first(cloud())))


MAPPINGS = {
    "linear": Linear(5, 3, generator=generator()),
    "residual_mlp": ResidualMLP(5, 3, hidden=7, dropout=0.25, generator=generator()),
    "identity": Identity(5),
    "unit": Normalize(),
    "concat": Concat(Linear(5, 3, generator=generator()), Identity(5), shares=[3, 1]),
    "chain": Sequential(Normalize(), Concat(Linear(5, 3, generator=generator()), Identity(5))),
    "rbf": RbfMap(cloud(4), cloud(4, 3), 2.0),
    "relative": RelativeMap(normalized(cloud(4)), 2, 3.0),
    "weighted_cosine": WeightedCosine(cloud(5, 3), torch.tensor([1.0, 0.5, 0.2]), 1),
    "coupled": CoupledMap(cloud(4), cloud(4, 4), cloud(1, 4)[0], cloud(4, 3), eps=2.0),
    "coupled, reversed": CoupledMap(
        cloud(4), cloud(4, 4), cloud(1, 4)[0], cloud(4, 3), eps=2.0, reverse=True
    ),
    "coupled, regression alone": CoupledMap(cloud(4), cloud(4, 4), cloud(1, 4)[0], eps=2.0),
    "diffused": GraphDiffusion(k=3).fit(cloud()),
    "locally_centered": LocalCentering(clusters=3).fit(cloud()),
}


def test_every_registered_map_is_among_these():
    kinds = {kind for kind, cls in MAPS.items() if cls.__module__.startswith("gera_lightning.")}
    assert {name.partition(",")[0] for name in MAPPINGS} == kinds


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_described_map_is_rebuilt_from_plain_json_and_its_weights(name):
    mapping = MAPPINGS[name]
    record = json.loads(json.dumps(describe_map(mapping)))
    assert record["kind"] == name.partition(",")[0]
    again = build_map(record)
    again.load_state_dict(mapping.state_dict())
    assert type(again) is type(mapping)
    assert torch.equal(again.eval()(cloud(7, seed=1)), mapping.eval()(cloud(7, seed=1)))
    assert describe_map(again) == describe_map(mapping)
    assert mapping.double()(cloud(dtype=torch.float64)).dtype == torch.float64
    mapping.float()


class Doubled(nn.Module):
    """A user's own map."""

    settings: dict[str, int] = {}  # noqa: RUF012

    def forward(self, x):
        return 2 * x


def test_an_unregistered_map_must_be_handed_over():
    record = describe_map(Concat(Doubled(), Identity(5)))
    with pytest.raises(UserError) as error:
        build_map(record)
    assert (error.value.key, error.value.value) == ("kind", "Doubled")
    assert isinstance(build_map(record, {"Doubled": Doubled}).maps[0], Doubled)
    assert "Doubled" not in MAPS


def test_shares_weight_the_mean_of_the_parts_cosines():
    f, x, y = (
        Linear(5, 3, generator=torch.Generator().manual_seed(0)),
        torch.randn(4, 5),
        torch.randn(6, 5),
    )
    both = Concat(f, Identity(5), shares=[3, 1])
    expected = 0.75 * normalized(f(x)) @ normalized(f(y)).T + 0.25 * normalized(x) @ normalized(y).T
    torch.testing.assert_close(both(x) @ both(y).T, expected)
    with pytest.raises(ValueError, match="shares"):
        Concat(f, shares=[1, 2])
