"""Bags of acoustic units: a frozen encoder of speech for frames of any network.

Legend: `T` frames of an utterance, `F` frame width, `U` units, `D` width of the row. Per utterance:

1. frames are whitened (PCA of training frames, unit variance in every direction);
2. each frame is shared among its nearest units of a k-means codebook: weights `softmax(-d2 /
  temperature)` over the `nearest`;
3. the shares are summed over time to a histogram `h`, `v = sqrt(h) * idf`, `idf = log((1 + n) / (1
  + df)) + 1`, and `v` L2-normalised;
4. `v` is centred and projected on its D leading principal directions.

Everything is fitted on training utterances. The bag keeps what sounds occur, and forgets their
order, as tf-idf does for words.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from gera_lightning.encoders.speech_embedding import SAMPLE_RATE, SpeechEmbeddingFrames
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import replace_atomically
from gera_lightning.utils.instantiate import register

FORMAT = "gera-acoustic-units"
VERSION = 1
POLISH = 8
"""Passes of Lloyd's algorithm over all frames after the mini-batches: +.02 in R@10 (ridge, 10,000
pairs, inner split of training items).
"""
HALF = ("codebook", "project")
"""Tables kept as float16. `fit` rounds them before use, so that a saved and a fitted pooling give
the same rows.
"""


def _as_kept(name: str, table: Tensor) -> Tensor:
    """A table as `save` and `load` return it."""
    return table.half().float() if name in HALF else table


def _check_frames(frames: Sequence[np.ndarray], width: int) -> None:
    """Every utterance has frames, of the width the pooling was fitted on."""
    for each in frames:
        if each.ndim != 2 or len(each) == 0:
            raise UserError(f"an utterance has no frames (shape {each.shape}): leave it out")
        if each.shape[1] != width:
            raise UserError(
                f"frames of width {each.shape[1]}, but the acoustic units were fitted on width"
                f" {width}: use the same network"
            )


def _fixed_signs(directions: Tensor) -> Tensor:
    """Columns with their largest entry positive: an eigenvector's sign is the library's whim."""
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


class AcousticUnits:
    """The fitted pooling.

    Args:
        tables: `mean` [F], `whiten` [F, F], `codebook` [U, F], `idf` [U], `center` [U], `project`
            [U, D].
        nearest: units that share a frame.
        temperature: of the shares, in squared whitened distance.
        fitted_on: a word that names the training utterances, kept for whoever wants to know.
    """

    def __init__(
        self, tables: dict[str, Tensor], nearest: int, temperature: float, fitted_on: str = ""
    ) -> None:
        self.tables = {name: table.float().contiguous() for name, table in tables.items()}
        self.nearest, self.temperature, self.fitted_on = nearest, temperature, fitted_on
        self.dim = int(tables["project"].shape[1])

    @classmethod
    def fit(
        cls,
        frames: Sequence[np.ndarray],
        *,
        units: int = 2048,
        dim: int = 768,
        nearest: int = 4,
        seed: int = 0,
        fitted_on: str = "",
    ) -> AcousticUnits:
        """Fit whitening, codebook, idf and projection.

        Args:
            frames: `[T, F]` of each training utterance.
            units: size of the codebook.
            dim: width of the rows, at most the number of utterances and units.
            nearest: units that share a frame; the temperature is a quarter of the median squared
                distance to the nearest unit.
            seed: of k-means.
            fitted_on: see the class.

        Raises:
            UserError: fewer frames than units, fewer utterances than `dim`, or an utterance without
                frames.
        """
        from sklearn.cluster import KMeans, MiniBatchKMeans

        _check_frames(frames, frames[0].shape[-1] if len(frames) else 0)
        every = np.concatenate(frames) if len(frames) else np.empty((0, 0), dtype=np.float32)
        if len(every) < units or min(len(frames), units) < dim:
            raise UserError(
                f"{len(every)} frames of {len(frames)} utterances are too few for {units} units and"
                f" {dim} dimensions"
            )
        mean = every.mean(0, dtype=np.float64)
        values, vectors = np.linalg.eigh(np.cov(every.T, dtype=np.float64))
        whiten = _fixed_signs(torch.from_numpy(vectors)).numpy() / np.sqrt(
            np.maximum(values, 1e-6 * values[-1])
        )
        white = ((every - mean) @ whiten).astype(np.float32)
        kmeans = MiniBatchKMeans(
            units, batch_size=16_384, max_iter=30, n_init=1, init_size=4 * units, random_state=seed
        ).fit(white)
        kmeans = KMeans(
            units,
            init=kmeans.cluster_centers_,
            n_init=1,
            max_iter=POLISH,
            tol=0,
            algorithm="lloyd",
            random_state=seed,
        ).fit(white)
        tables = {
            name: torch.from_numpy(np.asarray(v, dtype=np.float32))
            for name, v in (("mean", mean), ("whiten", whiten))
        }
        tables["codebook"] = _as_kept(
            "codebook", torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))
        )
        sample = torch.from_numpy(
            white[
                np.random.default_rng(seed).choice(
                    len(white), min(len(white), 20_000), replace=False
                )
            ]
        )
        temperature = float(torch.cdist(sample, tables["codebook"]).amin(1).square().median()) / 4
        tables |= {
            "idf": torch.ones(units),
            "center": torch.zeros(units),
            "project": torch.zeros(units, dim),
        }
        pooled = cls(tables, nearest, temperature)
        shares = torch.cat(list(pooled._histograms(frames)))
        tables["idf"] = torch.log((1 + len(frames)) / (1 + (shares > 0).sum(0))) + 1
        bags = torch.nn.functional.normalize(shares.sqrt() * tables["idf"], dim=1)
        tables["center"] = bags.mean(0)
        _, directions = torch.linalg.eigh(
            (bags - tables["center"]).T.double() @ (bags - tables["center"]).double()
        )
        tables["project"] = _as_kept("project", _fixed_signs(directions[:, -dim:].flip(1)).float())
        return cls(tables, nearest, temperature, fitted_on)

    def _histograms(self, frames: Sequence[np.ndarray], chunk: int = 128) -> Iterator[Tensor]:
        """Shares of the units summed over each utterance, `[n, U]`, chunk by chunk."""
        t = self.tables
        half_norm = t["codebook"].square().sum(1) / 2
        for start in range(0, len(frames), chunk):
            part = frames[start : start + chunk]
            _check_frames(part, len(t["mean"]))
            white = (torch.from_numpy(np.concatenate(part)).float() - t["mean"]) @ t["whiten"]
            d2 = 2 * (half_norm - white @ t["codebook"].T) + white.square().sum(1, keepdim=True)
            near, unit = d2.topk(self.nearest, dim=1, largest=False)
            share = torch.softmax(-near / self.temperature, dim=1)
            owner = torch.repeat_interleave(
                torch.arange(len(part)), torch.tensor([len(f) for f in part])
            )
            out = torch.zeros(len(part) * len(half_norm))
            out.index_add_(0, (owner.unsqueeze(1) * len(half_norm) + unit).ravel(), share.ravel())
            yield out.view(len(part), -1)

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Rows `[n, D]`, float32, of the frames `[T, F]` of n utterances.

        Raises:
            UserError: an utterance without frames.
        """
        t = self.tables
        rows = [
            (torch.nn.functional.normalize(h.sqrt() * t["idf"], dim=1) - t["center"]) @ t["project"]
            for h in self._histograms(frames)
        ]
        return torch.cat(rows).numpy() if rows else np.empty((0, self.dim), dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of the pooling; `tables` is a hash of their values, so
        rows of other units are told apart.
        """
        values = b"".join(self.tables[name].numpy().tobytes() for name in sorted(self.tables))
        return {
            "pooling": "bag of acoustic units",
            "units": len(self.tables["codebook"]),
            "nearest": self.nearest,
            "temperature": round(self.temperature, 4),
            "dim": self.dim,
            "tables": hashlib.sha256(values).hexdigest()[:16],
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `units.json` and `units.safetensors` (float16 but for the small tables)."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        small = {name: t.half() if name in HALF else t for name, t in self.tables.items()}
        replace_atomically(
            path / "units.safetensors",
            safetensors.torch.save({n: t.contiguous() for n, t in small.items()}),
        )
        record = {
            "format": FORMAT,
            "version": VERSION,
            **{n: getattr(self, n) for n in ("nearest", "temperature", "fitted_on")},
        }
        replace_atomically(path / "units.json", (json.dumps(record, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> AcousticUnits:
        """Read what `save` wrote.

        Raises:
            UserError: nothing there, or another format.
        """
        path = Path(folder)
        if not (path / "units.json").is_file():
            raise UserError(
                f"no acoustic units at {str(path)!r}: give the units/ folder of a speech data set"
            )
        record = json.loads((path / "units.json").read_text(encoding="utf-8"))
        if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
            raise UserError(
                f"{path}: format {record.get('format')!r} version {record.get('version')!r}, not"
                f" {FORMAT!r} {VERSION}"
            )
        tables = safetensors.torch.load((path / "units.safetensors").read_bytes())
        return cls(
            tables,
            int(record["nearest"]),
            float(record["temperature"]),
            str(record.get("fitted_on", "")),
        )


class Frames(Protocol):
    """Makes frames `[T, F]` of an item."""

    name: str

    def frames(self, audio: np.ndarray) -> np.ndarray:
        """Frames of one item."""
        ...


@register("acoustic_units")
class AcousticUnitEncoder:
    """speech_embedding frames pooled as a bag of acoustic units: audio to rows.

    Args:
        units: a fitted pooling, or the folder of one.
        frames: what makes frames of an item; the speech_embedding network by default.
    """

    name = "speech_embedding+acoustic_units"

    def __init__(
        self, units: AcousticUnits | str | os.PathLike[str], *, frames: Frames | None = None
    ) -> None:
        self.units = units if isinstance(units, AcousticUnits) else AcousticUnits.load(units)
        self.frames = frames or SpeechEmbeddingFrames()
        self.dim, self.sample_rate = self.units.dim, SAMPLE_RATE

    def describe(self) -> dict[str, Any]:
        """What a store's manifest records of this encoder."""
        return {"name": self.name, "frames": self.frames.name, **self.units.describe()}

    def encode(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """Rows `[n, dim]` of mono 16 kHz audio arrays in [-1, 1]."""
        return self.units.encode_frames([self.frames.frames(audio) for audio in items])
