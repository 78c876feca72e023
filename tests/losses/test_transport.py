import math

import numpy as np
import ot
import pytest
import torch

from gera_lightning.aligners.base import FitData
from gera_lightning.aligners.cca import CCA
from gera_lightning.aligners.procrustes import Procrustes
from gera_lightning.losses.base import LossSetup, Projected, StepBatch
from gera_lightning.losses.transport import TransportLoss, klot, sinkhorn
from gera_lightning.models.maps import Linear, normalized
from gera_lightning.utils.errors import UserError


def rows(n, d=4, seed=0):
    return normalized(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def cosines(n=7, m=5, seed=0):
    return rows(n, seed=seed) @ rows(m, seed=seed + 100).T


def uniform(n):
    return np.full(n, 1 / n)


SHAPES = pytest.mark.parametrize(("n", "m"), [(7, 5), (6, 6), (3, 20)])


@SHAPES
@pytest.mark.parametrize("eps", [0.1, 1.0])
def test_the_plan_is_that_of_pot(n, m, eps):
    similarity = cosines(n, m)
    plan = sinkhorn(similarity, eps, 5000).exp().numpy()
    expected = ot.sinkhorn(
        uniform(n),
        uniform(m),
        -similarity.numpy(),
        eps,
        method="sinkhorn_log",
        numItermax=50_000,
        stopThr=1e-13,
    )
    np.testing.assert_allclose(plan, expected, atol=1e-9)


@SHAPES
@pytest.mark.parametrize("eps", [0.01, 0.05])
@pytest.mark.parametrize("iterations", [1, 100])
@pytest.mark.parametrize("widest", [300, 0], ids=["scalings", "logarithms"])
def test_before_convergence_too_it_is_that_of_pot(n, m, eps, iterations, widest, monkeypatch):
    """POT updates columns first: the transposed problem."""
    monkeypatch.setattr("gera_lightning.losses.transport.WIDEST", widest)
    similarity = cosines(n, m)
    settings = {"method": "sinkhorn_log", "numItermax": iterations, "stopThr": 0, "warn": False}
    expected = ot.sinkhorn(uniform(m), uniform(n), -similarity.numpy().T, eps, **settings)
    np.testing.assert_allclose(
        sinkhorn(similarity, eps, iterations).exp().numpy(), expected.T, rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_few_iterations_are_those_of_the_published_algorithm(iterations):
    """In scalings instead of logarithms: u and v in turn."""
    similarity = cosines()
    kernel, v = np.exp(similarity.numpy() / 0.3), np.ones(5)
    for _ in range(iterations):
        u = uniform(7) / (kernel @ v)
        v = uniform(5) / (kernel.T @ u)
    np.testing.assert_allclose(
        sinkhorn(similarity, 0.3, iterations).exp().numpy(), u[:, None] * kernel * v, rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.01, 0.05])
def test_rows_and_columns_have_their_sums(eps, dtype):
    plan = sinkhorn(cosines(40, 30).to(dtype), eps, 2000).exp()
    assert plan.dtype == dtype
    torch.testing.assert_close(
        plan.sum(0), torch.full((30,), 1 / 30, dtype=dtype), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        plan.sum(1), torch.full((40,), 1 / 40, dtype=dtype), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("spread", [299, 301])
def test_scalings_and_logarithms_meet(spread, monkeypatch):
    similarity = rows(9, 3) @ rows(8, 3, seed=1).T
    similarity = spread * (similarity - similarity.min()) / (similarity.max() - similarity.min())
    found = sinkhorn(similarity, 1.0, 200)
    monkeypatch.setattr("gera_lightning.losses.transport.WIDEST", 0 if spread < 300 else 400)
    torch.testing.assert_close(found, sinkhorn(similarity, 1.0, 200))


def test_extreme_similarities_stay_finite():
    for similarity in (
        torch.eye(6),
        torch.ones(6, 4),
        torch.tensor([[1.0, -1.0]] * 4),
        1 - 2 * torch.eye(6),
    ):
        log_plan = sinkhorn(similarity, 1e-4, 50)
        assert log_plan.isfinite().all()
        assert float(log_plan.exp().sum()) == pytest.approx(
            1, rel=1e-2
        )  # K / eps is 1e4: float32 keeps three digits of its exponential


def unrolled(similarity, target, eps, iterations):
    """KL(P* | P) with P by scalings, every iteration differentiated."""
    n, m = similarity.shape
    kernel, v = (similarity / eps).exp(), similarity.new_ones(m)
    for _ in range(iterations):
        u = 1 / n / (kernel @ v)
        v = 1 / m / (kernel.T @ u)
    plan = u.unsqueeze(1) * kernel * v
    return (target * (target / plan).log()).sum()


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_the_gradient_is_that_through_converged_iterations(eps):
    log_target = sinkhorn(cosines(seed=5), 0.1, 5000)
    found, expected = (cosines().requires_grad_() for _ in range(2))
    value = klot(found, log_target, eps, 3000)
    slow = unrolled(expected, log_target.exp(), eps, 3000)
    torch.testing.assert_close(value, slow)
    (3 * value).backward()
    (3 * slow).backward()
    assert float(expected.grad.abs().max()) > 0.1
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        found.grad, 3 * (sinkhorn(cosines(), eps, 3000).exp() - log_target.exp()) / eps
    )


def test_the_gradient_is_that_of_finite_differences():
    log_target = sinkhorn(cosines(4, 3, seed=5), 0.2, 5000)
    assert torch.autograd.gradcheck(
        lambda k: klot(k, log_target, 0.2, 5000), cosines(4, 3).requires_grad_()
    )


def test_the_divergence_is_zero_at_the_target_alone_and_blind_to_offsets():
    """Adding to a row or a column of K changes no plan of given marginals."""
    similarity = cosines()
    log_target = sinkhorn(similarity, 0.1, 5000)
    assert float(klot(similarity, log_target, 0.1, 5000)) == pytest.approx(0, abs=1e-9)
    moved = similarity + torch.arange(7.0).unsqueeze(1) - torch.arange(5.0)
    assert float(klot(moved, log_target, 0.1, 5000)) == pytest.approx(0, abs=1e-9)
    assert float(klot(cosines(seed=9), log_target, 0.1, 5000)) > 0.1


def teacher_and_step(teacher, setting):
    pairs = [rows(20, 6, 1), rows(20, 5, 2)]
    maps = next(teacher.candidates(FitData(*pairs, *pairs), [setting]))
    x = {"a": rows(9, 6, 3), "b": rows(8, 5, 4)}
    unpaired = {f"unpaired_{s}": Projected(v, normalized(v[:, :3])) for s, v in x.items()}
    return maps, StepBatch(
        *(Projected(p, normalized(p[:, :3])) for p in pairs), torch.eye(20), **unpaired
    )


@pytest.mark.parametrize(
    ("teacher", "setting"),
    [(CCA(), {"penalty": 1.0, "share": 1.0}), (Procrustes(), {"share": 0.5})],
)
def test_the_module_compares_with_the_teachers_plan(teacher, setting):
    maps, step = teacher_and_step(teacher, setting)
    loss = TransportLoss(teacher, eps=0.2, teacher_eps=0.1, iterations=3000)
    loss.prepare(LossSetup(fit_closed_form=lambda form: maps if form is teacher else None))
    with torch.no_grad():
        known = [
            torch.nn.functional.normalize(m(s.x), dim=1).numpy()
            for m, s in zip(maps, step.unpaired, strict=True)
        ]
    wanted = ot.sinkhorn(
        uniform(9),
        uniform(8),
        -known[0] @ known[1].T,
        0.1,
        method="sinkhorn_log",
        numItermax=50_000,
        stopThr=1e-13,
    )
    z = [side.z.numpy() for side in step.unpaired]
    given = ot.sinkhorn(
        uniform(9),
        uniform(8),
        -z[0] @ z[1].T,
        0.2,
        method="sinkhorn_log",
        numItermax=50_000,
        stopThr=1e-13,
    )
    assert float(loss.on_step(step)) == pytest.approx(
        float((wanted * np.log(wanted / given)).sum()), rel=1e-6
    )


def test_a_fitted_teacher_is_kept_apart_and_is_not_trained():
    maps, step = teacher_and_step(CCA(), {"penalty": 1.0, "share": 1.0})
    loss = TransportLoss(CCA())
    loss.prepare(LossSetup(fit_closed_form=lambda _: maps))
    assert not list(loss.parameters())
    assert not loss.state_dict()
    before = float(loss.on_step(step))
    assert isinstance(maps[0], Linear)
    assert maps[0].weight.requires_grad
    torch.nn.init.zeros_(maps[0].weight)
    assert float(loss.on_step(step)) == before
    assert math.isfinite(before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps": 0}, ["eps=0", "above 0"]),
        ({"teacher_eps": -1}, ["teacher_eps=-1", "above 0"]),
        ({"iterations": 0}, ["iterations=0", "at least 1"]),
    ],
)
def test_a_mistake_names_key_value_and_remedy(settings, words):
    with pytest.raises(UserError) as caught:
        TransportLoss(**{"teacher": CCA(), **settings})
    assert all(word in str(caught.value) for word in words), caught.value
