"""Two noisy random nonlinear views of one known manifold: stores of any size whose geometry is
known.

Legend: `N` items, `d` latent dimension, `D` width of a view.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from gera_lightning.data.store import EmbeddingStore, StoreWriter
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register

SHARD = 50_000


@register("synthetic_views")
@dataclass(frozen=True)
class SyntheticViews:
    """Settings of the two views.

    Latent points `u` are uniform on a `d`-dimensional torus. Each view is a random smooth embedding
    of it, `x = sqrt(2 / F) cos(phi(u) W + c) R + noise * e`, with `phi` the sines and cosines of
    the angles, W ~ N(0, frequency^2), and R a random projection to the view's width; e is Gaussian
    noise of unit norm. Views share `u` and nothing else.

    Attributes:
        items: N.
        latent_dim: d.
        dim_a, dim_b: widths of the views.
        features: F, random features of each view.
        frequency: how strongly the views bend.
        noise: norm of the noise relative to the signal.
        classes: arcs that the first angle is cut into, kept as `label`.
        seed: fixes everything.
    """

    items: int = 4000
    latent_dim: int = 3
    dim_a: int = 96
    dim_b: int = 64
    features: int = 256
    frequency: float = 1.0
    noise: float = 0.5
    classes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("items", "latent_dim", "dim_a", "dim_b", "features", "classes"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise UserError(
                    f"data.synthetic.{key}={getattr(self, key)} must be a whole number of at"
                    " least 1"
                )
        if self.noise < 0 or self.frequency <= 0:
            raise UserError(
                f"data.synthetic.noise={self.noise} must be 0 or more and"
                f" frequency={self.frequency} above 0"
            )

    def stores(self, cache_dir: str | Path) -> tuple[EmbeddingStore, EmbeddingStore]:
        """The two stores, made under `cache_dir` unless they are there; safe with several processes
        at once.
        """
        digest = sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(cache_dir) / "synthetic" / digest
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for view, dim in enumerate((self.dim_a, self.dim_b)):
                if not (folder / "ab"[view] / "manifest.json").exists():
                    shutil.rmtree(
                        folder / "ab"[view], ignore_errors=True
                    )  # of a writer that was cut off
                    self._write(folder / "ab"[view], view, dim)
        return EmbeddingStore(folder / "a"), EmbeddingStore(folder / "b")

    def _write(self, path: Path, view: int, dim: int) -> None:
        rng = np.random.default_rng([self.seed, 1 + view])
        weight = rng.normal(0, self.frequency, (2 * self.latent_dim, self.features))
        phase = rng.uniform(0, 2 * np.pi, self.features)
        project = rng.normal(0, 1 / np.sqrt(dim), (self.features, dim))
        writer = StoreWriter(path, "float32", resume=False)
        for shard, start in enumerate(range(0, self.items, SHARD)):
            number = np.arange(start, min(start + SHARD, self.items))
            u = np.random.default_rng([self.seed, 0, shard]).uniform(
                0, 2 * np.pi, (len(number), self.latent_dim)
            )
            signal = (
                np.sqrt(2 / self.features)
                * np.cos(np.hstack([np.sin(u), np.cos(u)]) @ weight + phase)
                @ project
            )
            error = np.random.default_rng([self.seed, 3 + view, shard]).normal(
                0, 1 / np.sqrt(dim), signal.shape
            )
            order = np.random.default_rng([self.seed, 5 + view, shard]).permutation(len(number))
            rows = pd.DataFrame(
                {
                    "item": [f"point-{i:07d}" for i in number],
                    "label": (u[:, 0] / (2 * np.pi) * self.classes).astype(int).astype(str),
                }
            )
            rows.insert(0, "row", rows["item"] + "-" + "ab"[view])
            writer.append((signal + self.noise * error)[order], rows.iloc[order])
        settings: dict[str, Any] = asdict(self)
        writer.finish(
            {"name": f"synthetic-view-{'ab'[view]}", "dim": dim},
            {"name": "synthetic torus", **settings},
        )
