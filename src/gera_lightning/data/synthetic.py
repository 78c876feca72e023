"""Two noisy nonlinear views of one manifold: stores of any size whose geometry is known.

Legend: `N` items, `d` latent dimension, `F` random features, `D` width of a view.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from gera_lightning.data.store import EmbeddingStore, StoreWriter, is_whole
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import register

SHARD = 50_000
"""Items per shard of a store."""
POINTS, MAP_A, NOISE_A, ORDER_A, NUISANCE_A = 0, 1, 3, 5, 7
"""Random streams of a seed; those of view b follow on those of view a."""
GROUPS = 16
"""Values of the nuisance, such as voices."""


@register("synthetic_views")
@dataclass(frozen=True)
class SyntheticViews:
    """Two noisy random nonlinear views of a torus.

    Latent points `u` are uniform on a `d`-dimensional torus. Each view is a random smooth embedding
    of it, `x = sqrt(2 / F) cos(phi(u) W + c) R + noise * e`, with `phi` the sines and cosines of
    the angles, W ~ N(0, frequency^2), R a random projection to the view's width, and e Gaussian
    noise whose norm is 1 on average. The views share `u` and nothing else. A nuisance adds one of
    16 vectors of norm `nuisance` to each row, drawn for each view by itself, as a voice would.

    Attributes:
        items: N.
        latent_dim: d.
        dim_a, dim_b: widths of the views.
        features: F.
        frequency: how strongly the views bend.
        noise: norm of the noise relative to the signal.
        nuisance: norm of the nuisance relative to the signal; which one a row has is its `group`.
        classes: arcs that the first angle is cut into, kept as `label`.
        seed: fixes everything.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> a, b = SyntheticViews(items=50, dim_a=8, dim_b=6).stores(folder.name)
    >>> a.read().shape, b.read().shape, set(a.rows["item"]) == set(b.rows["item"])
    ((50, 8), (50, 6), True)
    """

    items: int = 4000
    latent_dim: int = 3
    dim_a: int = 96
    dim_b: int = 64
    features: int = 256
    frequency: float = 1.0
    noise: float = 0.5
    nuisance: float = 0.0
    classes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("items", "latent_dim", "dim_a", "dim_b", "features", "classes"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise UserError("must be a whole number of at least 1", key=key, value=value)
        for key in ("noise", "nuisance"):
            if getattr(self, key) < 0:
                raise UserError("must be 0 or more", key=key, value=getattr(self, key))
        if self.frequency <= 0:
            raise UserError("must be above 0", key="frequency", value=self.frequency)

    def stores(self, cache_dir: str | Path) -> tuple[EmbeddingStore, EmbeddingStore]:
        """The two stores; they are made under `cache_dir` unless they are there already.

        Several processes may call this at once.
        """
        settings = json.dumps(asdict(self), sort_keys=True)
        folder = Path(cache_dir) / "synthetic" / sha256(settings.encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for view, dim in enumerate((self.dim_a, self.dim_b)):
                path = folder / "ab"[view]
                if not is_whole(path):
                    shutil.rmtree(path, ignore_errors=True)  # cut off, or damaged
                    self._write(path, view, dim)
        return EmbeddingStore(folder / "a"), EmbeddingStore(folder / "b")

    def _write(self, path: Path, view: int, dim: int) -> None:
        rng = np.random.default_rng([self.seed, MAP_A + view])
        weight = rng.normal(0, self.frequency, (2 * self.latent_dim, self.features))
        phase = rng.uniform(0, 2 * np.pi, self.features)
        project = rng.normal(0, 1 / np.sqrt(dim), (self.features, dim))
        centers = np.random.default_rng([self.seed, NUISANCE_A + view]).normal(size=(GROUPS, dim))
        centers *= self.nuisance / np.sqrt(dim)
        writer = StoreWriter(path, "float32", resume=False)
        for shard, start in enumerate(range(0, self.items, SHARD)):
            numbers = np.arange(start, min(start + SHARD, self.items))
            u = self._points(shard, len(numbers))
            phi = np.hstack([np.sin(u), np.cos(u)])
            signal = np.sqrt(2 / self.features) * np.cos(phi @ weight + phase) @ project
            noise = self._stream(NOISE_A + view, shard).normal(0, 1 / np.sqrt(dim), signal.shape)
            # the order of rows tells nothing: rows of the two stores are paired by item alone
            order = self._stream(ORDER_A + view, shard).permutation(len(numbers))
            rows = self._rows(numbers, u, "ab"[view])
            x = signal + self.noise * noise
            if self.nuisance:
                group = self._stream(NUISANCE_A + view, shard + 1).integers(0, GROUPS, len(x))
                x, rows["group"] = x + centers[group], [f"group{number}" for number in group]
            writer.append(x[order], rows.iloc[order])
        writer.finish(
            {"name": f"synthetic-view-{'ab'[view]}", "dim": dim},
            {"name": "synthetic torus", **asdict(self)},
        )

    def _stream(self, purpose: int, shard: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, shard])

    def _points(self, shard: int, count: int) -> np.ndarray:
        """Angles `[count, d]` of a shard's points, the same for both views."""
        return self._stream(POINTS, shard).uniform(0, 2 * np.pi, (count, self.latent_dim))

    def _rows(self, numbers: np.ndarray, u: np.ndarray, view: str) -> pd.DataFrame:
        items = [f"point-{number:07d}" for number in numbers]
        arc = (u[:, 0] / (2 * np.pi) * self.classes).astype(int)
        return pd.DataFrame(
            {"row": [f"{item}-{view}" for item in items], "item": items, "label": arc.astype(str)}
        )
