"""The artefact of every method: a shared space with its preprocessing, saved as a folder.

Legend: `n` rows, `D_a`, `D_b` frozen widths, `D` shared width. The folder never names code to
import, so a map of a class that is not ours must be handed to `load` by the caller.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gera_lightning.aligners.folder import damaged, read_folder, write_folder
from gera_lightning.aligners.sharing import downloaded, model_card, push_folder
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.geometry.neighbors import search
from gera_lightning.models.maps import build_map, describe_map
from gera_lightning.models.preprocessing import CHUNK, Preprocessing
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.arrays import check_shape, float_rows
from gera_lightning.utils.errors import UserError, check_one_of

DIRECTIONS = ("ab", "ba")
Rows = Tensor | np.ndarray | EmbeddingStore
"""Frozen embeddings: an array `[n, D]` of any real type, or a whole store of them."""


ENCODED_BY = {
    "encoder": "name",
    "revision": "revision",
    "layer": "layer",
    "pooling": "pooling",
    "preprocessing": "preprocessing",
}
"""What a store must have of the encoder that an aligner's rows were made by, for a person, and the
manifest's key.
"""


class Aligner:
    """Two frozen spaces brought into one.

    Args:
        preprocess_a, preprocess_b: preprocessing of each modality.
        space: maps and score.
        about: anything worth keeping with it: method, budget, seed, encoders, data hash.

    >>> from gera_lightning.aligners import Ridge
    >>> x_a = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> aligner = Ridge().fit(x_a, x_a[:, :6]).aligner_
    >>> aligner
    Aligner(a: 8 -> 14, b: 6 -> 14, maps Concat(Linear, Identity) and Concat(Identity, Linear))
    >>> aligner.encode_b(x_a[:3, :6]).shape
    torch.Size([3, 14])
    """

    def __init__(
        self,
        preprocess_a: Preprocessing,
        preprocess_b: Preprocessing,
        space: SharedSpace,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.preprocess = nn.ModuleDict({"a": preprocess_a, "b": preprocess_b}).eval()
        self.space = space.eval()
        self.about = dict(about or {})

    def to(self, device: str | torch.device) -> Aligner:
        """Move to a device, in place."""
        self.preprocess.to(device)
        self.space.to(device)
        return self

    def modality(self, side: str) -> str:
        """Name of modality `side` for a person: its store's, such as `speech`, else the side."""
        stores = self.about.get("stores") or {}
        return Path(str(stores.get(side, side))).name

    def encoder(self, side: str) -> Mapping[str, Any]:
        """What is known of the encoder of modality `side`, as its store's manifest has it."""
        encoders = self.about.get("encoders")
        known = encoders.get(side) if isinstance(encoders, Mapping) else None
        return known if isinstance(known, Mapping) else {}

    # ---- rows to the shared space ----

    def encode_a(self, x: Rows) -> Tensor:
        """Unit rows `[n, D]` in the shared space from embeddings of modality a, `[n, D_a]`."""
        return self.encode("a", x)

    def encode_b(self, x: Rows) -> Tensor:
        """Unit rows `[n, D]` in the shared space from embeddings of modality b, `[n, D_b]`."""
        return self.encode("b", x)

    def encode(self, side: str, x: Rows, *, chunk: int = CHUNK) -> Tensor:
        """Unit rows `[n, D]` in the shared space, on the aligner's device.

        Args:
            side: the modality, `a` or `b`.
            x: frozen embeddings of it.
            chunk: rows mapped at once.

        Raises:
            UserError: rows of another width, a store of another encoder, or values that are not
                finite.
        """
        return torch.cat(list(self.encoded(side, x, chunk=chunk)))

    @torch.no_grad()
    def encoded(self, side: str, x: Rows, *, chunk: int = CHUNK) -> Iterator[Tensor]:
        """`encode` in parts of `chunk` rows: a large gallery need not fit in memory.

        Of no rows there is one empty part.
        """
        name = f"embeddings of {self.modality(side)}"
        if isinstance(x, EmbeddingStore):
            self._check_encoder(side, x)
        elif not isinstance(x, Tensor):
            x = np.asarray(x)
        shape = (len(x), x.dim) if isinstance(x, EmbeddingStore) else x.shape
        check_shape(shape, name, self.about.get(f"dim_{side}"), "check encoder and modality")
        for start in range(0, max(len(x), 1), chunk):
            part = slice(start, start + chunk)
            rows = x.read(part) if isinstance(x, EmbeddingStore) else x[part]
            yield self._embedded(side, float_rows(rows, name), start)

    def _check_encoder(self, side: str, store: EmbeddingStore) -> None:
        """Refuse a store whose rows were embedded otherwise, as far as both are known."""
        own = self.encoder(side)
        for key, name in ENCODED_BY.items():
            known, given = own.get(name), store.encoder.get(name)
            if known is not None and given is not None and known != given:
                raise UserError(
                    f"is not {known!r}, which this aligner's modality {self.modality(side)} has"
                    f" ({store.path})",
                    key=key,
                    value=given,
                    remedy="embed as its rows were embedded",
                )

    def _embedded(self, side: str, rows: Tensor, start: int) -> Tensor:
        """Images of rows that begin at row number `start`, every one of them finite."""
        z = self.space.embed(side, self.preprocess[side](rows.to(self._device)))
        lost = (~z.isfinite().all(1)).nonzero()[:, 0]
        if not len(lost):
            return z
        row = f"embedding {start + int(lost[0])}"
        if not rows[lost.cpu()].isfinite().all():
            raise UserError(f"{row} is not finite: embed it again or leave it out")
        raise UserError(
            f"{row} has no finite image: the map of modality {self.modality(side)} diverged in"
            " training (lower optimizer.lr), or its training rows are all alike"
        )

    @property
    def _device(self) -> torch.device:
        tensors = (*self.preprocess.state_dict().values(), *self.space.state_dict().values())
        return tensors[0].device if tensors else torch.device("cpu")

    # ---- scores ----

    @torch.no_grad()
    def score(self, x_a: Rows, x_b: Rows) -> Tensor:
        """Score of every row of a with every row of b, `[n_a, n_b]`.

        It is a cosine, with `space.correction` a corrected one.
        """
        z_a, z_b = self.encode("a", x_a), self.encode("b", x_b)
        ranked = self.space.queries(z_a) @ self.space.gallery("b", z_b).T
        return ranked + self.space.offset("a", z_a)

    @torch.no_grad()
    def search(
        self, queries: Rows, gallery: Rows, k: int = 10, *, direction: str = "ab"
    ) -> tuple[Tensor, Tensor]:
        """The k best gallery rows per query.

        Args:
            queries: frozen embeddings of the querying modality.
            gallery: frozen embeddings of the other.
            k: answers per query, cut to the gallery.
            direction: `ab`: queries are of a, the gallery of b; `ba` the other way.

        Returns:
            scores `[n, k]` descending, and gallery row numbers `[n, k]`.

        Raises:
            UserError: an unknown direction, no answers asked for, or as `encode`.
        """
        check_one_of("direction", direction, DIRECTIONS)
        if k < 1:
            raise UserError("must be at least 1", key="k", value=k)
        asking, asked = direction[0], direction[1]
        z = self.encode(asking, queries)
        rows = self.space.queries(z)
        # part by part, so that memory does not grow with the gallery: of each its k best
        values, index, start = [], [], 0
        for part in self.encoded(asked, gallery):
            best, found = search(rows, self.space.gallery(asked, part), k, metric="ip")
            values.append(best)
            index.append(found + start)
            start += len(part)
        ranked = torch.cat(values, dim=1).sort(dim=1, descending=True, stable=True)
        numbers = torch.cat(index, dim=1).gather(1, ranked.indices)
        return ranked.values[:, :k] + self.space.offset(asking, z), numbers[:, :k]

    # ---- the folder ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder; files appear whole or not at all."""
        correction = self.space.correction
        record = {
            "about": self.about,
            "center": {side: self.preprocess[side].mean is not None for side in "ab"},
            "maps": {"a": describe_map(self.space.map_a), "b": describe_map(self.space.map_b)},
            "correction": None if correction is None else correction.describe(),
        }
        write_folder(Path(path), record, self._parts.state_dict())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        map_classes: Mapping[str, type[nn.Module]] | None = None,
    ) -> Aligner:
        """Read a folder that `save` wrote.

        Args:
            path: the folder.
            map_classes: your own map classes by name, where the aligner was trained with one.

        Raises:
            UserError: no aligner there, an unknown format or kind of map, or damaged weights.
        """
        folder = Path(path)
        record, weights = read_folder(folder)
        try:
            _check_sizes(record["maps"], sum(values.numel() for values in weights.values()))
            aligner = cls(*_empty_parts(record, weights, map_classes))
            aligner._parts.load_state_dict(weights)
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
            IndexError,
            OverflowError,
        ) as error:
            reason = f"weights and aligner.json do not fit: {error!r}".splitlines()[0]
            raise damaged(folder, reason) from error
        return aligner

    def push_to_hub(
        self,
        repository: str,
        *,
        measures: Mapping[str, Any] | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Share it on the Hugging Face hub with a model card; the repository's address.

        Args:
            repository: `USER/NAME`; made where it is missing.
            measures: a result row for the card, see `sharing.model_card`.
            private: make it a private one.
            token: of the hub; by default that of `hf auth login`.

        Raises:
            UserError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as scratch:
            self.save(scratch)
            card = model_card(self.about, measures)
            (Path(scratch) / "README.md").write_text(card, encoding="utf-8")
            return push_folder(Path(scratch), repository, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        map_classes: Mapping[str, type[nn.Module]] | None = None,
    ) -> Aligner:
        """Load one that was shared: a repository of the hub, or a folder.

        Args:
            name: `USER/NAME`, or a folder.
            revision: of the repository.
            token: of the hub.
            map_classes: see `load`.

        Raises:
            UserError: neither of them, or as `load`.
        """
        return cls.load(downloaded(name, revision, token), map_classes=map_classes)

    @property
    def _parts(self) -> nn.ModuleDict:
        """All that has weights, by the names that the folder gives them."""
        return nn.ModuleDict({"preprocess": self.preprocess, "space": self.space})

    def __repr__(self) -> str:
        sides = []
        for side in "ab":
            width = self.about.get(f"dim_{side}")
            dims = "" if width is None else f": {width} -> {self._shared_width(side, width)}"
            sides.append(self.modality(side) + dims)
        kinds = f"{_kind(self.space.map_a)} and {_kind(self.space.map_b)}"
        correction = self.space.correction
        scored = "" if correction is None else f", {correction}"
        return f"Aligner({', '.join(sides)}, maps {kinds}{scored})"

    @torch.no_grad()
    def _shared_width(self, side: str, width: int) -> int:
        return self.space.embed(side, torch.zeros(1, width, device=self._device)).shape[1]


def _check_sizes(record: Any, count: int) -> None:
    """Refuse sizes of maps that are beyond their weights: they would be made before they are
    filled.

    Raises:
        ValueError: naming them.
    """
    if isinstance(record, Mapping):
        sizes = sorted(value for value in record.values() if isinstance(value, int))[-2:]
        if len(sizes) == 2 and sizes[0] * sizes[1] > max(count, 2**20):
            raise ValueError(f"sizes {sizes[1]} and {sizes[0]} with {count} weights")
        for value in record.values():
            _check_sizes(value, count)
    elif isinstance(record, list):
        for value in record:
            _check_sizes(value, count)


def _kind(mapping: nn.Module) -> str:
    """The classes of a map and its parts."""
    parts = ", ".join(_kind(part) for part in getattr(mapping, "maps", ()))
    return type(mapping).__name__ + (f"({parts})" if parts else "")


def _empty_parts(
    record: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    map_classes: Mapping[str, type[nn.Module]] | None,
) -> tuple[Preprocessing, Preprocessing, SharedSpace, Mapping[str, Any]]:
    """What an aligner is made of by its record, the weights still to be filled in."""
    means = [
        torch.zeros_like(weights[f"preprocess.{side}.mean"]) if record["center"][side] else None
        for side in "ab"
    ]
    maps = [build_map(record["maps"][side], map_classes) for side in "ab"]
    correction, kept = None, record["correction"]
    if kept is not None:
        pools = [torch.zeros_like(weights[f"space.correction.pool_{side}"]) for side in "ab"]
        correction = CSLS(kept["k"], kept["weight"], pool_a=pools[0], pool_b=pools[1])
    space = SharedSpace(maps[0], maps[1], correction)
    return Preprocessing(means[0]), Preprocessing(means[1]), space, record["about"]
