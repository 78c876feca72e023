"""Draws the figures of docs/method.md with the package's own functions.

python benchmarks/draw_method.py           docs/method_patch.png, method_operator.png,
                                           method_neighbors.png

On train rows alone, seconds on one core.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

import matplotlib
import torch

from gera_lightning import EmbeddingStore, Ridge, knn_graph
from gera_lightning.geometry import DiffusionOperator, squared_distances
from gera_lightning.geometry.diffusion import effective_neighbors
from gera_lightning.losses.geometric import geometric_loss
from gera_lightning.models.maps import normalized
from gera_lightning.models.preprocessing import Preprocessing

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams["axes.titlesize"] = 10

ROOT = Path(__file__).resolve().parents[1]
K = 16
PAIRS = 300
QUERY = "The river was deviated to prevent flooding"


def train_rows(store: EmbeddingStore) -> list[int]:
    """Numbers of the rows that are no test rows."""
    return [n for n, split in enumerate(store.rows["split"]) if split == "train"]


def save(figure: plt.Figure, name: str) -> None:
    """Into docs/, small."""
    figure.savefig(ROOT / "docs" / f"{name}.png", dpi=100)


# ---- a patch, density normalisation, bandwidth ----


def draw_patch() -> None:
    """Points on an arc, dense at its left end."""
    random = torch.Generator().manual_seed(0)
    angle = torch.pi * torch.rand(240, generator=random) ** 2
    x = torch.stack([-angle.cos(), angle.sin()], dim=1)
    x = x + 0.04 * torch.randn(x.shape, generator=random)
    anchor = int((angle - 1.2).abs().argmin())
    graph = knn_graph(x, K)
    members = graph.patches(torch.tensor([anchor]))[0]
    d2 = squared_distances(x[graph.patches(torch.arange(len(x)))])
    operators = {
        alpha: DiffusionOperator(alpha=alpha, self_loops=False).calibrated(d2)
        for alpha in (0.0, 1.0)
    }
    rows = {alpha: operator(d2[anchor])[0, 1:] for alpha, operator in operators.items()}
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")

    left.scatter(*x.T, s=6, color="0.75")
    for member, weight in zip(members[1:], rows[1.0], strict=True):
        ends = torch.stack([x[anchor], x[member]], dim=1)
        left.plot(*ends, color="tab:blue", linewidth=20 * float(weight))
    left.scatter(*x[members[1:]].T, s=12, color="tab:blue", zorder=3)
    left.scatter(*x[anchor], s=50, color="tab:red", zorder=4)
    left.set(
        title=f"a patch: an anchor and its {K} neighbours", aspect="equal", xticks=[], yticks=[]
    )

    order = angle[members[1:]].argsort()
    for alpha, shift in ((0.0, -0.2), (1.0, 0.2)):
        middle.bar(torch.arange(K) + shift, rows[alpha][order], 0.4, label=f"alpha = {alpha:.0f}")
    middle.axvline(float((angle[members[1:]] < angle[anchor]).sum()) - 0.5, color="tab:red")
    middle.set(title="the anchor's row of P", xlabel="neighbours, from the dense end on", xticks=[])
    middle.legend()

    factors = torch.logspace(-2, 1, 40)
    seen = [
        float(effective_neighbors(DiffusionOperator(factor=float(f), self_loops=False)(d2)).mean())
        for f in factors
    ]
    right.semilogx(factors, seen)
    right.axhline((K + 1) / 2, color="0.6", linewidth=0.8)
    right.plot(operators[1.0].factor, (K + 1) / 2, "o", color="tab:red")
    right.set(title="the bandwidth that is taken", xlabel="eps / mean squared distance")
    right.set(ylabel="effective neighbours of a row")
    save(figure, "method_patch")


# ---- the operator before and after a map ----


def draw_operator() -> None:
    """One patch of pictures: frozen, after a map that knows nothing of geometry, and lost."""
    image, text = (EmbeddingStore(ROOT / "data/pictures" / name) for name in ("image", "text"))
    kept = train_rows(image)
    raw = torch.from_numpy(image.read(kept)).float()
    x = Preprocessing.fit(raw)(raw)
    partner = {item: n for n, item in enumerate(text.rows["item"])}
    paired = [n for n, item in enumerate(image.rows["item"].iloc[kept]) if item in partner][:PAIRS]
    words = text.read([partner[image.rows["item"].iloc[kept[n]]] for n in paired])
    ridge = Ridge(direction="a_to_b").fit(raw[paired], words)
    random = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    images = {"frozen": x, f"ridge, {PAIRS} pairs": ridge.encode_a(raw)}
    images |= {"random points": normalized(random), "collapsed": torch.ones_like(x)}

    graph = knn_graph(x, K)
    patches = graph.patches(torch.arange(512))
    operator = DiffusionOperator(self_loops=False).calibrated(
        squared_distances(x[patches]), scale=graph.edge_scale
    )
    figure, panels = plt.subplots(1, len(images), figsize=(11, 3.1), layout="constrained")
    for panel, (name, z) in zip(panels, images.items(), strict=True):
        p = operator(squared_distances(z[patches[0]]), scale=graph.edge_scale)
        loss = geometric_loss(x[patches], z[patches], operator, scale=graph.edge_scale).mean()
        shown = panel.imshow(p, vmin=0, vmax=0.35, cmap="Blues")
        panel.set(title=f"{name}: L_geo {float(loss):.2f}", xticks=[], yticks=[])
        print(f"{name:<18} L_geo {float(loss):.3f}, mean of {len(patches)} patches")
    figure.colorbar(shown, ax=panels, shrink=0.8)
    save(figure, "method_operator")


# ---- neighbours in the shipped speech set ----


def draw_neighbors() -> None:
    """The nearest rows of one sentence, spoken and written."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.1), layout="constrained")
    for panel, name in zip(panels, ("speech", "text"), strict=True):
        store = EmbeddingStore(ROOT / "data/wordnet_speech" / name)
        kept = train_rows(store)
        raw = torch.from_numpy(store.read(kept)).float()
        x, rows = Preprocessing.fit(raw)(raw), store.rows.iloc[kept].reset_index(drop=True)
        anchor = int((rows["text"] == QUERY).to_numpy().argmax())
        members = (x @ x[anchor]).topk(K + 1).indices  # the anchor first
        p = DiffusionOperator(self_loops=False)(squared_distances(x[members]))[0, 1:]
        voices = rows["group"] if name == "speech" else None
        near = members[1:][p.argsort(descending=True)][:8].tolist()
        labels = [
            shorten(rows["text"][n], 52) + (f" [{voices[n]}]" if voices is not None else "")
            for n in near
        ]
        panel.barh(range(len(near)), p.sort(descending=True).values[:8])
        panel.set_yticks(range(len(near)), labels)
        panel.invert_yaxis()
        said = f" [{voices[anchor]}]" if voices is not None else ""
        panel.set_title(f"{name}: {QUERY}{said}", fontsize=9, loc="right")
        panel.tick_params(labelsize=8)
        print(f"{name}, {QUERY}{said}:", *labels, sep="\n  ")
    save(figure, "method_neighbors")


if __name__ == "__main__":
    draw_patch()
    draw_neighbors()
    draw_operator()
