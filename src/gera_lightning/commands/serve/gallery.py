"""What the page searches: both stores of a run, mapped once and kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gera_lightning.commands.search import matching
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.embedding.corpus import SUFFIXES
from gera_lightning.embedding.query import NewItems, encode_new, store_encoder
from gera_lightning.encoders.base import Encoder
from gera_lightning.encoders.rebuild import none_takes, side_that_takes
from gera_lightning.experiment.load_run import LoadedRun
from gera_lightning.geometry.neighbors import search
from gera_lightning.utils.errors import UserError

MEDIA = (*SUFFIXES["audio"], *SUFFIXES["image"])
"""Files that are played or shown."""
NEIGHBORS = 6
"""Of the query within its own modality, before and after the map."""


class Gallery:
    """Both modalities' rows, frozen and mapped, and the encoders of new ones.

    Args:
        run: the aligner and its stores.
        sources: where the weights of each modality's encoder are; empty for the manifest's name.
    """

    def __init__(self, run: LoadedRun, sources: Mapping[str, str]) -> None:
        self.run, self.sources = run, sources
        self.names = dict(zip("ab", run.modalities, strict=True))
        self.stores: dict[str, EmbeddingStore] = {"a": run.a, "b": run.b}
        self._lock = threading.Lock()
        self.frozen, self.mapped, self.scored = {}, {}, {}
        space = run.aligner.space
        for side, store in self.stores.items():
            rows = torch.from_numpy(store.read())
            with torch.no_grad():
                self.frozen[side] = run.aligner.preprocess[side](rows)
                self.mapped[side] = run.aligner.encode(side, rows)
                self.scored[side] = space.gallery(side, self.mapped[side])
        self.encoder = cache(self._encoder)

    def _encoder(self, side: str) -> Encoder:
        store = self.stores[side]
        return store_encoder(store.encoder, self.sources[side], store)

    @property
    def _encoders(self) -> dict[str, dict[str, Any]]:
        return {side: store.encoder for side, store in self.stores.items()}

    def takes(self, modality: str) -> str | None:
        """The side whose encoder takes `text`, `audio` or `image`; None where none does."""
        return side_that_takes(self._encoders, modality)

    def of_new(self, new: NewItems, k: int) -> dict[str, Any]:
        """What is found with something new.

        Raises:
            UserError: no encoder takes it, weights that are missing, or a file that is damaged.
        """
        side = self.takes(new.modality)
        if side is None:
            raise UserError(none_takes(self._encoders, self.names, new.modality))
        with self._lock:  # a network at a time
            rows = encode_new(self.encoder(side), new)
        return self._found(side, torch.from_numpy(np.asarray(rows)), k, None)

    def of_row(self, side: str, number: int, k: int) -> dict[str, Any]:
        """What is found with a row of a store."""
        rows = torch.from_numpy(self.stores[side].read([number]))
        return {"query": self.row(side, number), **self._found(side, rows, k, number)}

    @torch.no_grad()
    def _found(self, side: str, x: Tensor, k: int, own: int | None) -> dict[str, Any]:
        aligner, other = self.run.aligner, "b" if side == "a" else "a"
        z = aligner.encode(side, x)
        scores, rows = search(aligner.space.queries(z), self.scored[other], k, metric="ip")
        scores = scores + aligner.space.offset(side, z)
        item = None if own is None else self.stores[side].rows["item"].iloc[own]
        before = self._near(aligner.preprocess[side](x), self.frozen[side], own)
        after = self._near(z, self.mapped[side], own)
        return {
            "side": side,
            "modality": self.names[side],
            "searched": self.names[other],
            "results": [
                {**self.row(other, int(row)), "score": round(float(score), 4)}
                | {"same": bool(self.stores[other].rows["item"].iloc[int(row)] == item)}
                for score, row in zip(scores[0], rows[0], strict=True)
            ],
            "before": [self.row(side, row) for row in before],
            "after": [self.row(side, row) for row in after],
        }

    @staticmethod
    def _near(query: Tensor, rows: Tensor, own: int | None) -> list[int]:
        _, found = search(query, rows, NEIGHBORS + 1, metric="ip")
        return [row for row in found[0].tolist() if row != own][:NEIGHBORS]

    def row(self, side: str, number: int) -> dict[str, Any]:
        """A row for the page."""
        record = self.stores[side].rows.iloc[number]
        text = record.get("text")
        media = self.media(side, number)
        kind = "" if media is None else _kind(media)
        return {
            "side": side,
            "number": number,
            "name": str(record["row"]),
            "text": text if isinstance(text, str) else "",
            "media": kind,
        }

    def media(self, side: str, number: int) -> Path | None:
        """The sound or picture of a row, where it is below the corpus's folder; None elsewhere."""
        store = self.stores[side]
        root = (store.manifest.get("source") or {}).get("root")
        path = store.rows["path"].iloc[number] if "path" in store.rows else None
        if not isinstance(root, str) or not isinstance(path, str):
            return None
        if not path.lower().endswith(MEDIA):
            return None
        folder = Path(root).resolve()
        file = (folder / path).resolve()
        return file if file.is_relative_to(folder) and file.is_file() else None

    def matching(self, words: str) -> tuple[str, int] | None:
        """A row whose name or whole text these words are."""
        for side, store in self.stores.items():
            numbers = matching(store.rows, words, whole=True)
            if len(numbers):
                return side, int(numbers[0])
        return None


def _kind(path: Path) -> str:
    return "audio" if path.name.lower().endswith(SUFFIXES["audio"]) else "image"
