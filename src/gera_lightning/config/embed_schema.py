"""The `embed` section of an experiment: which raw data and which encoder make its two stores. No
torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import ClassSpec

DTYPES = ("float16", "float32")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Words of Lightning's for a network's arithmetic; its weights stay in 32 bits."""


@dataclass
class EmbedSide:
    """One modality: its raw items and its encoder. The store goes to `data.a` or `data.b`."""

    corpus: ClassSpec | None = None
    """A class such as `gera_lightning.embedding.layouts.LibriSpeech` and its arguments."""
    encoder: ClassSpec | None = None
    """A class such as `gera_lightning.encoders.speech.SpeechEncoder` and its arguments; its
    `batch_size` is the run's.
    """


@dataclass
class EmbedConfig:
    """How raw data become embedding stores."""

    a: EmbedSide = field(default_factory=EmbedSide)
    """Modality a."""
    b: EmbedSide = field(default_factory=EmbedSide)
    """Modality b."""
    shard_rows: int = 8192
    """Rows a file of a store; an interrupted run does one of them again at most."""
    dtype: str = "float16"
    """How vectors are kept: `float16` or `float32`."""
    precision: str = "32-true"
    """`32-true`, `bf16-mixed` or `16-mixed`."""
    accelerator: str = "auto"
    """`auto`, `cpu`, `gpu`, ..."""
    devices: int = 1
    """Processes on this machine, started by torchrun. -1: one per GPU."""
    workers: int = 0
    """Loader processes that read and prepare items beside each of them."""
    strict: bool = False
    """Stop at the first item that cannot be read."""
    max_skipped: float = 0.05
    """Stop when more than this share of the items cannot be read."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.workers < 0:
            key, low = ("shard_rows", 1) if self.shard_rows < 1 else ("workers", 0)
            raise UserError(f"embed.{key}={getattr(self, key)} must be at least {low}")
        check_one_of("embed.dtype", self.dtype, DTYPES)
        check_one_of("embed.precision", self.precision, PRECISIONS)
        if self.devices < 1 and self.devices != -1:
            raise UserError(f"embed.devices={self.devices} must be at least 1, or -1 for every GPU")
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"embed.max_skipped={self.max_skipped} must lie between 0 and 1")
