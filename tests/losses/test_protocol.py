"""What every registered loss does on a step."""

from __future__ import annotations

import pytest
import torch

from gera_lightning.losses.base import Loss, LossSetup, Projected, ProjectedPatches, StepBatch
from gera_lightning.models.maps import Linear, normalized
from gera_lightning.utils.instantiate import CLASSES, build, resolve

LOSSES = {
    "clip": {},
    "siglip": {},
    "geometric": {},
    "structure": {"warmup": 2},
    "transport": {"teacher": {"class": "cca"}},
    "captions": {},
}
WIDTHS = {"a": 8, "b": 6}


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    return normalized(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


def step_of(maps: dict[str, Linear]) -> StepBatch:
    def projected(side: str, n: int, seed: int) -> Projected:
        x = rows(n, WIDTHS[side], seed)
        return Projected(x, normalized(maps[side](x)))

    members = torch.arange(20).view(4, 5)
    patches = {
        f"patches_{side}": ProjectedPatches(projected(side, 20, 7), members, 4) for side in "ab"
    }
    unpaired = {f"unpaired_{side}": projected(side, 9, 3) for side in "ab"}
    return StepBatch(
        projected("a", 6, 1),
        projected("b", 6, 2),
        torch.eye(6, dtype=torch.bool),
        **unpaired,
        **patches,
        scale=torch.tensor(10.0),
    )


def test_every_registered_loss_is_looked_at():
    resolve("siglip", "losses")  # imports the room
    assert {name for name, cls in CLASSES.items() if issubclass(cls, Loss)} == set(LOSSES)


@pytest.mark.parametrize(("name", "arguments"), LOSSES.items())
def test_a_loss_is_a_finite_scalar_with_gradients_and_no_chance(name, arguments):
    values = []
    for _ in range(2):
        maps = {
            side: Linear(width, 4, generator=torch.Generator().manual_seed(5))
            for side, width in WIDTHS.items()
        }
        loss = build({"class": name, **arguments}, "losses.x")
        frozen = {
            side: (rows(100, width, 9).view(20, 5, width), 1.0) for side, width in WIDTHS.items()
        }
        teacher = tuple(
            Linear(width, 3, generator=torch.Generator().manual_seed(6))
            for width in WIDTHS.values()
        )
        loss.prepare(LossSetup(frozen, lambda _, teacher=teacher: teacher))
        value = loss.on_step(step_of(maps))
        value.backward()
        assert value.ndim == 0
        assert value.isfinite()
        for mapping in maps.values():
            assert mapping.weight.grad.isfinite().all()
            assert float(mapping.weight.grad.norm()) > 0
        values.append(float(value.detach()))
    assert values[0] == values[1]
