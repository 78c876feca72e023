"""What every closed form has to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gera_lightning.aligners.base import ClosedForm, FitData, Maps


@pytest.fixture
def in_order() -> Callable[[ClosedForm, FitData, int], list[Maps]]:
    """Maps of a method's eight settings for a budget, each checked to be what that setting alone
    gives.
    """

    def check(method: ClosedForm, given: FitData, pairs: int) -> list[Maps]:
        settings = method.settings(8, pairs)
        together = list(method.candidates(given, settings))
        assert len(together) == len(settings) == 8
        for setting, (map_a, map_b) in zip(settings, together, strict=True):
            [(alone_a, alone_b)] = method.candidates(given, [setting])
            torch.testing.assert_close(map_a(given.pool_a), alone_a(given.pool_a))
            torch.testing.assert_close(map_b(given.pool_b), alone_b(given.pool_b))
        return together

    return check
