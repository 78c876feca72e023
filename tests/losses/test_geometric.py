import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from gera_lightning.geometry.kernels import BANDWIDTHS, KERNELS, squared_distances
from gera_lightning.geometry.neighbors import knn_graph
from gera_lightning.losses import geometric
from gera_lightning.losses.base import LossSetup
from gera_lightning.losses.geometric import FORMS, GeometricLoss, geometric_loss
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError

ALL = list(itertools.product(KERNELS, BANDWIDTHS))
SCALE = 0.9  # the frozen graph's median squared edge length, as the data module would give it


def patches(a=4, m=6, d=7, seed=0, dtype=torch.float64):
    return normalized(
        torch.randn(a, m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).to(dtype)


def mapped(x, d=5, seed=1):
    weight = torch.randn(
        x.shape[-1], d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(x.dtype)
    return normalized(x @ weight)


class OnPatches(GeometricLoss):
    """The loss of each of given patches, `[A]`."""

    def calibrated(self, x, scale):
        self.prepare(LossSetup({"a": (x, scale)}))
        self.operator = self.fitted["a"][0]
        return self

    def __call__(self, x, z, **more):
        return geometric_loss(x, z, self.operator, form=self.form, tied=self.tied, **more)


def slow_eps(d2, rule, factor, scale, neighbor):
    m = len(d2)
    if rule == "patch":
        return factor * np.full((m, m), d2.sum() / (m * (m - 1)))
    if rule == "self_tuning":
        s = [math.sqrt(sorted(row)[min(neighbor, m - 1)]) for row in d2]
        return factor * np.outer(s, s)
    return np.full((m, m), factor * scale if rule == "global" else factor)


def slow_operator(d2, kernel, eps, alpha, power, loops):
    forms = {
        "heat": lambda v, e: math.exp(-v / e),
        "student": lambda v, e: 1 / (1 + v / e),
        "laplacian": lambda v, e: math.exp(-math.sqrt(v) / math.sqrt(e)),
    }
    m = len(d2)
    w = np.array([[forms[kernel](d2[j, k], eps[j, k]) for k in range(m)] for j in range(m)])
    if not loops:
        np.fill_diagonal(w, 0)
    q = w.sum(1)
    w = np.array([[w[j, k] / (q[j] * q[k]) ** alpha for k in range(m)] for j in range(m)])
    return np.linalg.matrix_power(w / w.sum(1, keepdims=True), power)


def slow_form(form, p, q, loops):
    m = len(p)
    flat = np.full((m, m), 1 / m) if loops else (1 - np.eye(m)) / (m - 1)
    if form == "frobenius":
        return ((p - q) ** 2).sum()
    if form == "relative":
        return ((p - q) ** 2).sum() / ((p - flat) ** 2).sum()
    if form == "kl":
        return np.mean([entropy(p[j], q[j]) for j in range(m)])
    return np.mean([jensenshannon(p[j], q[j]) ** 2 for j in range(m)])


def slow_distances(x):
    return np.array([[((x[j] - x[k]) ** 2).sum() for k in range(len(x))] for j in range(len(x))])


def slow_loss(
    x, z, form, kernel, rule, factor, alpha=1.0, power=1, tied=False, neighbor=3, loops=False
):
    d2_x, d2_z = (
        [slow_distances(p) for p in points.numpy().astype(np.float64)] for points in (x, z)
    )

    # torch's median of an even number of values is the lower one
    def lower_median(tables):
        return np.quantile([t[0, k] for t in tables for k in range(1, len(t))], 0.5, method="lower")

    ratio = lower_median(d2_z) / lower_median(d2_x)
    out = []
    for before, after in zip(d2_x, d2_z, strict=True):
        eps = slow_eps(before, rule, factor, SCALE, neighbor)
        eps_z = eps if tied else slow_eps(after, rule, factor, SCALE * ratio, neighbor)
        out.append(
            slow_form(
                form,
                *(
                    slow_operator(d2, kernel, e, alpha, power, loops)
                    for d2, e in ((before, eps), (after, eps_z))
                ),
                loops,
            )
        )
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tied", "loops"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_relative_loss_equals_slow_loops(kernel, rule, tied, loops, dtype):
    x = patches(dtype=dtype)
    loss = OnPatches(
        kernel=kernel, bandwidth=rule, factor=0.6, neighbor=3, tied=tied, self_loops=loops
    )
    value = loss(x, mapped(x), scale=SCALE)
    assert value.shape == (4,)
    expected = slow_loss(x, mapped(x), "relative", kernel, rule, 0.6, tied=tied, loops=loops)
    np.testing.assert_allclose(value, expected, rtol=2e-4 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize(
    ("form", "alpha", "power"), list(itertools.product(FORMS, (0.0, 0.5), (1, 3)))
)
def test_every_form_equals_slow_loops(form, alpha, power):
    x = patches()
    loss = OnPatches(form, factor=0.6, alpha=alpha, power=power)
    np.testing.assert_allclose(
        loss(x, mapped(x), scale=SCALE),
        slow_loss(x, mapped(x), form, "heat", "patch", 0.6, alpha, power),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("k", "loops"), [(2, False), (5, False), (16, False), (1, True), (2, True), (16, True)]
)
@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_the_relative_loss_is_0_for_what_keeps_geometry_and_1_for_a_collapse(
    kernel, rule, k, loops
):
    x = patches(m=k + 1, d=24)
    loss = OnPatches(kernel=kernel, bandwidth=rule, self_loops=loops).calibrated(x, SCALE)
    rotation, _ = torch.linalg.qr(
        torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    collapsed = x[:1, :1].expand_as(x)
    torch.testing.assert_close(
        loss(x, x, scale=SCALE), torch.zeros(4, dtype=x.dtype), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        loss(x, x @ rotation, scale=SCALE), torch.zeros(4, dtype=x.dtype), atol=1e-8, rtol=0
    )
    torch.testing.assert_close(
        loss(x, collapsed, scale=SCALE), torch.ones(4, dtype=x.dtype), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_a_map_to_random_points_costs_much_where_patches_have_structure(kernel, rule):
    """Points of a sphere's surface sent to random ones of a wide space, at the bandwidth that
    calibration chooses.
    """
    x = patches(a=32, m=17, d=3)
    loss = OnPatches(kernel=kernel, bandwidth=rule).calibrated(x, SCALE)
    assert float(loss(x, patches(a=32, m=17, d=24, seed=5), scale=SCALE).mean()) > 0.25


@pytest.mark.parametrize("rule", ["patch", "self_tuning", "global"])
def test_a_change_of_scale_alone_costs_nothing_unless_the_bandwidth_is_tied(rule):
    x = patches()
    assert float(OnPatches(bandwidth=rule, factor=0.5)(x, 0.3 * x, scale=SCALE).max()) < 1e-9
    assert (
        float(OnPatches(bandwidth=rule, factor=0.5, tied=True)(x, 0.3 * x, scale=SCALE).min()) > 0.1
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_points_can_be_renumbered_and_rotated(kernel, rule, form):
    x = patches()
    z = mapped(x)
    loss = OnPatches(form, kernel, rule, factor=0.6, neighbor=3)
    value = loss(x, z, scale=SCALE)
    order = torch.tensor(
        [0, 4, 2, 5, 1, 3]
    )  # the anchor stays first: global scales are those of anchor edges
    torch.testing.assert_close(loss(x[:, order], z[:, order], scale=SCALE), value)
    rotation, _ = torch.linalg.qr(
        torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    torch.testing.assert_close(loss(x, z @ rotation, scale=SCALE), value)
    swap = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(x[swap], z[swap], scale=SCALE), value[swap])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_gradients_equal_finite_differences_with_eps_held(kernel, rule, form):
    x = patches(a=2, m=4)
    z = mapped(x).requires_grad_()
    tied = OnPatches(form, kernel, rule, factor=0.6, neighbor=2, tied=True)
    torch.autograd.gradcheck(lambda v: tied(x, v, scale=SCALE), (z,))

    free = OnPatches(form, kernel, rule, factor=0.6, neighbor=2)
    ratio = (
        squared_distances(z.detach())[:, 0, 1:].median() / squared_distances(x)[:, 0, 1:].median()
    )
    eps = free.operator.eps(squared_distances(z.detach()), SCALE * ratio)
    p = free.operator(squared_distances(x), scale=SCALE)

    def held(v):
        flat = [free.operator.flat(4)] if form == "relative" else []
        return FORMS[form](p, free.operator(squared_distances(v), eps=eps), *flat).sum()

    (gradient,) = torch.autograd.grad(free(x, z, scale=SCALE).sum(), z)
    slow, step = torch.zeros_like(gradient), 1e-6
    for place in itertools.product(*(range(n) for n in z.shape)):
        moved = torch.zeros_like(z)
        moved[place] = step
        with torch.no_grad():
            slow[place] = (held(z + moved) - held(z - moved)) / (2 * step)
    torch.testing.assert_close(gradient, slow, rtol=1e-5, atol=1e-7)


def test_no_gradient_flows_through_the_frozen_side():
    x = patches().requires_grad_()
    z = mapped(patches()).requires_grad_()
    OnPatches(factor=0.5)(x, z, scale=SCALE).sum().backward()
    assert x.grad is None
    assert float(z.grad.norm()) > 0


@pytest.mark.parametrize(
    "case",
    [
        "frozen duplicate",
        "mapped duplicate",
        "frozen identical",
        "mapped identical",
        "both identical",
    ],
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_values_and_gradients_are_finite_on_coinciding_points(kernel, rule, form, case, tied):
    x = patches(dtype=torch.float32)
    z = mapped(x)
    loss = OnPatches(form, kernel, rule, tied=tied).calibrated(x, SCALE)
    which, how = case.split()
    for points in (x,) if which == "frozen" else (z,) if which == "mapped" else (x, z):
        points[:, 1] = points[:, 0]
        if how == "identical":
            points[:] = points[:1, :1].clone()
    z.requires_grad_()
    value = loss(x, z, scale=SCALE)
    value.sum().backward()
    assert value.isfinite().all()
    assert (value >= -1e-6).all()
    assert z.grad.isfinite().all()


def rows(seed, a=3, m=5):
    return torch.rand(
        a, m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).softmax(-1)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_0_only_between_equal_operators(form):
    torch.testing.assert_close(
        FORMS[form](rows(0), rows(0)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert (FORMS[form](rows(0), rows(1)) > 1e-4).all()


def test_jensen_shannon_is_symmetric_and_at_most_log_2():
    torch.testing.assert_close(
        geometric.js_loss(rows(0), rows(1)), geometric.js_loss(rows(1), rows(0))
    )
    apart = geometric.js_loss(
        torch.eye(4, dtype=torch.float64).unsqueeze(0),
        torch.eye(4, dtype=torch.float64).roll(1, 0).unsqueeze(0),
    )
    assert float(apart) == pytest.approx(math.log(2), abs=1e-9)


def test_a_flat_frozen_patch_has_a_floor_under_its_relative_loss():
    flat = torch.full((1, 4, 4), 0.25)
    assert float(geometric.relative_loss(flat, torch.eye(4).unsqueeze(0))) == pytest.approx(
        3 / 1e-6
    )
    assert float(geometric.relative_loss(flat, flat)) == 0.0


@pytest.mark.parametrize(("kernel", "rule"), ALL)
def test_a_share_of_the_patches_sees_the_whole_batch_through_its_edges(kernel, rule):
    x = patches(a=7)
    z = mapped(x)
    loss = OnPatches(kernel=kernel, bandwidth=rule, factor=0.6)
    edges = squared_distances(x)[:, 0, 1:], squared_distances(z)[:, 0, 1:]
    whole = loss(x, z, scale=SCALE)
    for rank in range(3):
        torch.testing.assert_close(
            loss(x[rank::3], z[rank::3], scale=SCALE, edges=edges), whole[rank::3]
        )
    if rule == "global":
        assert not torch.allclose(loss(x[:3], z[:3], scale=SCALE), whole[:3])


def test_calibration_keeps_a_given_factor_and_chooses_a_missing_one():
    setup = LossSetup({"a": (patches(), SCALE), "b": (patches(seed=3), 2 * SCALE)})
    given = GeometricLoss("js", "student", "self_tuning", factor=0.37, neighbor=2, tied=True)
    given.prepare(setup)
    assert given.fitted == {"a": (given.operator, SCALE), "b": (given.operator, 2 * SCALE)}
    free = GeometricLoss("js", "student", "self_tuning", tied=True)
    free.prepare(setup)
    assert free.operator.factor is None
    assert all(operator.factor > 0 for operator, _ in free.fitted.values())


def test_on_plain_rows_it_is_the_mean_over_each_rows_patch():
    x = normalized(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
    loss, z = GeometricLoss().fit(x, k=5), mapped(x)
    members = knn_graph(x, 5).patches(torch.arange(40))
    operator, scale = loss.fitted["plain"]
    expected = geometric_loss(x[members], z[members], operator, scale=scale).mean()
    torch.testing.assert_close(loss(x, z), expected)
    torch.testing.assert_close(loss(x.clone(), z), expected)  # the graph is found anew
    with pytest.raises(UserError, match="call fit"):
        GeometricLoss()(x, z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_compared_in_single(dtype):
    x = patches(dtype=torch.float32)
    z = mapped(x).to(dtype)
    loss = OnPatches(factor=0.5)
    torch.testing.assert_close(
        loss(x.to(dtype), z, scale=SCALE), loss(x.to(dtype).float(), z.float(), scale=SCALE)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(x, mapped(x).float(), scale=SCALE).dtype == torch.float32


def test_settings_are_checked():
    with pytest.raises(UserError, match="'relative'"):
        OnPatches("relativ")
    with pytest.raises(UserError, match="kernel='haet'"):
        OnPatches(kernel="haet")
