"""What a method's settings say about the parts it is made of."""

from __future__ import annotations

from gera_lightning.config import Config
from gera_lightning.losses.base import UnpairedLoss
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import build


def unpaired_loss(config: Config) -> UnpairedLoss:
    """The loss that `config.unpaired_loss` names, its teacher not yet fitted.

    Raises:
        UserError: a refused value, or a class that is no loss of a step.
    """
    assert config.unpaired_loss is not None
    loss = build(config.unpaired_loss, "unpaired_loss")
    if not isinstance(loss, UnpairedLoss):
        raise UserError(
            f"unpaired_loss.class={config.unpaired_loss['class']!r} is no loss of a step: take a"
            " subclass of gera_lightning.losses.base.UnpairedLoss, such as"
            " gera_lightning.losses.structure.StructureLoss"
        )
    return loss


def reads_unpaired(config: Config) -> bool:
    """Whether a trained method's steps hold unpaired rows without neighbours."""
    return config.unpaired_loss is not None and unpaired_loss(config).reads_unpaired


def unpaired_reader(config: Config) -> str | None:
    """What of a method cannot do without unpaired rows; None where nothing does."""
    if any(choice for choices in config.filters.values() for choice in choices):
        return "filters"
    if config.correction is not None:
        return "correction"
    if config.closed_form is not None:
        return (
            "closed_form"
            if getattr(build(config.closed_form, "closed_form"), "reads_unpaired", False)
            else None
        )
    if config.geometric_loss is not None and not config.batch.paired_anchors:
        return "geometric loss"
    return "unpaired_loss" if reads_unpaired(config) else None
