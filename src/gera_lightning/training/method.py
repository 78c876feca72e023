"""A config becomes objects, in this one place.

`Method.from_config` builds and checks what a method is made of: its filters, closed form, init,
losses with their weights, correction, head and optimizer. Parts with a state of their own, such as
losses with a temperature, are kept as factories: every training makes them anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gera_lightning.aligners.base import ClosedForm
from gera_lightning.config import Config, combinations
from gera_lightning.config.schema import PARTS, GraphConfig
from gera_lightning.filters.base import Filter
from gera_lightning.geometry.neighbors import SearchSettings
from gera_lightning.losses.base import PATCHES, UNPAIRED, Loss
from gera_lightning.training.mixup import FuseMix
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import Factory, build, expect


@dataclass(frozen=True)
class WeightedLoss:
    """One of a method's losses: how it is made, what it weighs, and what it requires of a step."""

    make: Factory
    weight: float
    requires: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """What a method is made of.

    Attributes:
        config: the settings it was made from.
        filters: of modality `a` and `b`: the choices, each a list of filters.
        closed_form: fitted instead of trained maps; None for a trained method.
        init: closed form that the maps' linear parts start from; None for a random start.
        head: makes a modality's map.
        losses: by name; none for a closed form.
        mixup: mixes the pairs of a step; None leaves them.
        optimizer: makes the optimizer of parameter groups.
        correction: makes the score correction of mapped pools; None ranks by cosine.
    """

    config: Config
    filters: Mapping[str, Sequence[Sequence[Filter]]]
    closed_form: ClosedForm | None
    init: ClosedForm | None
    head: Factory
    losses: Mapping[str, WeightedLoss]
    mixup: FuseMix | None
    optimizer: Factory
    correction: Factory | None

    @classmethod
    def from_config(cls, config: Config) -> Method:
        """Build and check every part.

        Raises:
            UserError: naming the part that is refused, and what it refuses.
        """
        trained = config.closed_form is None
        method = cls(
            config=config,
            filters={side: _filters(config, side) for side in "ab"},
            closed_form=_closed_form(config.closed_form, "closed_form"),
            init=_closed_form(config.init, "init") if trained else None,
            head=Factory.of(config.head, "head", PARTS["head"]),
            losses={n: _weighted(s, f"losses.{n}") for n, s in config.losses.items() if trained},
            mixup=None if config.mixup is None or not trained else build(config.mixup, "mixup"),
            optimizer=Factory.of(config.optimizer, "optimizer"),
            correction=None
            if config.correction is None
            else Factory.of(config.correction, "correction", PARTS["correction"]),
        )
        return method.without_unpaired() if config.data.pool_size == 0 else method

    def without_unpaired(self) -> Method:
        """This method for no unpaired rows: without filters, correction, and losses that ask for
        such rows.
        """
        kept = {n: loss for n, loss in self.losses.items() if not self._requires_pool(loss)}
        unfiltered: Mapping[str, Sequence[Sequence[Filter]]] = {side: [[]] for side in "ab"}
        return replace(self, filters=unfiltered, correction=None, losses=kept)

    def _requires_pool(self, loss: WeightedLoss) -> bool:
        paired_anchors = PATCHES in loss.requires and self.config.batch.paired_anchors
        return UNPAIRED in loss.requires or (PATCHES in loss.requires and not paired_anchors)

    @property
    def requires(self) -> frozenset[str]:
        """What a step must hold beside the pairs: any of `unpaired` and `patches`."""
        return frozenset(need for loss in self.losses.values() for need in loss.requires)

    @property
    def requires_unpaired(self) -> str | None:
        """The setting that cannot do without unpaired rows; None where nothing needs them."""
        if any(choice for choices in self.filters.values() for choice in choices):
            return "filters"
        if self.correction is not None:
            return "correction"
        if self.closed_form is not None:
            needs = getattr(self.closed_form, "reads_unpaired", False)
            return "closed_form" if needs else None
        found = (name for name, loss in self.losses.items() if self._requires_pool(loss))
        return next((f"losses.{name}" for name in found), None)

    def make_losses(self) -> nn.ModuleDict:
        """New losses by name."""
        return nn.ModuleDict({name: loss.make() for name, loss in self.losses.items()})

    def candidates(self) -> list[tuple[dict[str, float], Method]]:
        """The methods that `tuning.grid` chooses among, with their values; itself without one."""
        return [(v, Method.from_config(config)) for v, config in combinations(self.config)]


def search_settings(graph: GraphConfig) -> SearchSettings:
    """How the neighbours of a graph are searched for."""
    return SearchSettings(graph.backend, graph.index, graph.nprobe, graph.shard)


def _closed_form(spec: Any, where: str) -> ClosedForm | None:
    if spec is None:
        return None
    form = build(spec, where)
    expect(form, ClosedForm, where, "ridge")
    checked: ClosedForm = form
    return checked


def _weighted(spec: Mapping[str, Any], where: str) -> WeightedLoss:
    arguments = {key: value for key, value in spec.items() if key != "weight"}
    factory = Factory.of(arguments, where)
    loss = factory()
    expect(loss, Loss, where, "clip")
    if loss.teacher is not None:
        expect(loss.teacher, ClosedForm, f"{where}.teacher", "cca")
    return WeightedLoss(factory, float(spec.get("weight", 1.0)), loss.requires)


def _filters(config: Config, side: str) -> list[list[Filter]]:
    """The choices of filters of a modality; without any, one that leaves features as they are."""
    choices = []
    for number, specs in enumerate(config.filters.get(side) or [[]]):
        filters = []
        for place, spec in enumerate(specs):
            where = f"filters.{side}[{number}][{place}]"
            made = build(spec, where)
            if isinstance(made, ClosedForm):  # which has a `fit`, too
                raise UserError("is no Filter but a closed form", key=where, value=made)
            expect(made, Filter, where, "local_centering")
            filters.append(made)
        choices.append(filters)
    if len(choices) > 1 and config.closed_form is None and config.init is None:
        raise UserError(
            "trained maps that do not start from a closed form cannot choose between filters",
            key=f"filters.{side}",
            remedy="keep one choice, or set init",
        )
    return choices
