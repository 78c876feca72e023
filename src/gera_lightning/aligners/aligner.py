"""The artefact of every method: a shared space with its preprocessing, saved as a folder and
searched with.

Legend: `n` rows, `D_a`, `D_b` frozen widths, `D` shared width. The folder holds `aligner.json` and
`maps.safetensors`; it never names code to import, so a map of a class that is not ours must be
handed to `load` by the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from gera_lightning import __version__
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.geometry.neighbors import search
from gera_lightning.models.maps import build_map, describe_map
from gera_lightning.models.preprocessing import CHUNK, Preprocessing
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.files import replace_atomically

FORMAT = "gera-aligner"
VERSION = 1
DIRECTIONS = ("ab", "ba")
Rows = Tensor | np.ndarray | EmbeddingStore
"""Frozen embeddings: an array `[n, D]`, or a whole store of them."""


ENCODED_BY = {
    "encoder": "name",
    "revision": "revision",
    "layer": "layer",
    "pooling": "pooling",
    "preprocessing": "preprocessing",
}
"""What an aligner knows of each modality's encoder, as `<key>_a` and `<key>_b`, and where a store's
manifest has it.
"""


def float_rows(x: Tensor | np.ndarray, name: str) -> Tensor:
    """An array as a float32 tensor: of any strides and byte order, or what NumPy makes of `x`; a
    tensor stays on its device.

    Raises:
        UserError: no array of real numbers.
    """
    if isinstance(x, Tensor):
        return x.detach().to(torch.float32)
    try:
        rows = np.asarray(x)
        if rows.dtype.kind not in "fiubO":
            raise TypeError(f"of type {rows.dtype}")
        rows = np.ascontiguousarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} must be an array of real numbers [rows, width] ({error})"
        ) from error
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


class Aligner:
    """Two frozen spaces brought into one.

    Args:
        preprocess_a, preprocess_b: preprocessing of each modality.
        space: maps and score.
        about: anything worth keeping with it: method, budget, seed, encoders, data hash.
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

    def encode_a(self, x: Rows) -> Tensor:
        """Unit rows `[n, D]` in the shared space from frozen embeddings of modality a, `[n,
        D_a]` (or a whole store of them).
        """
        return self.encode("a", x)

    def encode_b(self, x: Rows) -> Tensor:
        """Unit rows `[n, D]` in the shared space from frozen embeddings of modality b, `[n,
        D_b]` (or a whole store of them).
        """
        return self.encode("b", x)

    def encode(self, side: str, x: Rows, *, chunk: int = CHUNK) -> Tensor:
        """Unit rows `[n, D]` in the shared space from frozen embeddings of modality `side`,
        `chunk` rows at a time.

        Raises:
            UserError: rows of another width, a store of another encoder, or values that are not
                finite.
        """
        return torch.cat(list(self.encoded(side, x, chunk=chunk)))

    @torch.no_grad()
    def encoded(self, side: str, x: Rows, *, chunk: int = CHUNK) -> Iterator[Tensor]:
        """`encode` part by part, of `chunk` rows each: a large gallery need not fit in memory. Of
        no rows one empty part.
        """
        dim = self.about.get(f"dim_{side}")
        if isinstance(x, EmbeddingStore):
            for ours, theirs in ENCODED_BY.items():
                known, given = self.about.get(f"{ours}_{side}"), x.encoder.get(theirs)
                if known is not None and given is not None and known != given:
                    raise UserError(
                        f"{x.path}: its {ours} is {given!r}, but that of this aligner's modality"
                        f" {side} is {known!r}: embed as its rows were embedded"
                    )
            width, rows = x.dim, len(x)
        else:
            x = x if isinstance(x, Tensor) else np.asarray(x)
            if x.ndim != 2:
                raise UserError(f"embeddings must be [rows, width], got shape {tuple(x.shape)}")
            rows, width = x.shape
        if dim is not None and width != dim:
            raise UserError(
                f"embeddings are {width} wide, but this aligner's modality {side} is {dim} wide:"
                " check encoder and modality"
            )
        device = next(
            (t.device for m in (self.preprocess, self.space) for t in m.state_dict().values()),
            torch.device("cpu"),
        )
        for start in range(0, max(rows, 1), chunk):
            part = (
                x.read(slice(start, start + chunk))
                if isinstance(x, EmbeddingStore)
                else x[start : start + chunk]
            )
            part = float_rows(part, "embeddings")
            z = self.space.embed(side, self.preprocess[side](part.to(device)))
            lost = (~z.isfinite().all(1)).nonzero()[:, 0]
            if len(lost):
                what = f"embedding {start + int(lost[0])}"
                if part[lost.cpu()].isfinite().all():
                    raise UserError(
                        f"{what} has no finite image: the map of modality {side} diverged in"
                        " training (lower optimizer.lr), or its training rows are all alike"
                    )
                raise UserError(f"{what} is not finite: embed it again or leave it out")
            yield z

    @torch.no_grad()
    def score(self, x_a: Rows, x_b: Rows) -> Tensor:
        """Score of every row of a with every row of b, `[n_a, n_b]`: a cosine, with
        `space.correction` a corrected one.
        """
        z_a, z_b = self.encode("a", x_a), self.encode("b", x_b)
        return self.space.queries(z_a) @ self.space.gallery("b", z_b).T + self.space.offset(
            "a", z_a
        )

    @torch.no_grad()
    def search(
        self, queries: Rows, gallery: Rows, k: int = 10, *, direction: str = "ab"
    ) -> tuple[Tensor, Tensor]:
        """The k best gallery rows of each query.

        Args:
            queries: frozen embeddings of the querying modality.
            gallery: frozen embeddings of the other.
            k: answers a query.
            direction: `ab`: queries are of a, the gallery of b; `ba` the other way.

        Returns:
            scores `[n, k]` descending, and gallery row numbers `[n, k]`.
        """
        if direction not in DIRECTIONS or k < 1:
            raise UserError(f"direction={direction!r} must be 'ab' or 'ba', and k={k} at least 1")
        z_q = self.encode(direction[0], queries)
        asked, best, start = self.space.queries(z_q), [], 0
        for z_g in self.encoded(
            direction[1], gallery
        ):  # part by part, so that memory does not grow with the gallery
            values, index = search(asked, self.space.gallery(direction[1], z_g), k, metric="ip")
            best.append((values, index + start))
            start += len(z_g)
        values, place = torch.cat([values for values, _ in best], dim=1).sort(
            dim=1, descending=True, stable=True
        )
        index = torch.cat([index for _, index in best], dim=1).gather(1, place)
        return values[:, :k] + self.space.offset(direction[0], z_q), index[:, :k]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder; files appear whole or not at all."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        correction = self.space.correction
        record = {
            "format": FORMAT,
            "version": VERSION,
            "library": __version__,
            "about": self.about,
            "center": {side: self.preprocess[side].mean is not None for side in "ab"},
            "maps": {"a": describe_map(self.space.map_a), "b": describe_map(self.space.map_b)},
            "correction": (
                None
                if correction is None
                else {
                    "kind": "csls",
                    "k": correction.k,
                    "weight": correction.weight,
                    "pool": [len(correction.pool_a), len(correction.pool_b)],
                }
            ),
        }
        weights = {
            **self.preprocess.state_dict(prefix="preprocess."),
            **self.space.state_dict(prefix="space."),
        }
        # a clone each: safetensors refuses tensors that share memory, as those of a map used on
        # both sides do
        written = safetensors.torch.save(
            {n: v.detach().cpu().contiguous().clone() for n, v in weights.items()}
        )
        record["maps_sha256"] = hashlib.sha256(
            written
        ).hexdigest()  # a kill may fall between the two files
        replace_atomically(folder / "maps.safetensors", written)
        replace_atomically(
            folder / "aligner.json",
            (json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n").encode(),
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, kinds: Mapping[str, type[nn.Module]] | None = None
    ) -> Aligner:
        """Read a folder that `save` wrote.

        Args:
            path: the folder.
            kinds: your own map classes by name, where the aligner was trained with one.

        Raises:
            UserError: no aligner there, an unknown format or kind, or damaged weights.
        """
        folder = Path(path)
        try:
            record = json.loads((folder / "aligner.json").read_text())
            written = (folder / "maps.safetensors").read_bytes()
            weights = safetensors.torch.load(written)
        except FileNotFoundError as error:
            raise UserError(
                f"no aligner at {str(folder)!r} ({Path(error.filename).name} is missing): give the"
                " aligner/ folder of a run, or train that run again with overwrite=true"
            ) from error
        except (ValueError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{folder}: the aligner is damaged ({error}): train it again"
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"{folder}: the aligner is damaged (aligner.json holds no keys): train it again"
            )
        if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
            raise UserError(
                f"{folder}: format {record.get('format')!r} version {record.get('version')!r}; this"
                f" version reads {FORMAT!r} version {VERSION}"
            )
        if record.get("maps_sha256", "") not in ("", hashlib.sha256(written).hexdigest()):
            raise UserError(
                f"{folder}: the aligner is damaged (maps.safetensors is not the one aligner.json"
                " was written with): train it again"
            )
        try:
            means = [
                torch.zeros_like(weights[f"preprocess.{s}.mean"]) if record["center"][s] else None
                for s in "ab"
            ]
            maps = [build_map(record["maps"][s], kinds) for s in "ab"]
            correction = None
            if record["correction"] is not None:
                pools = {
                    f"pool_{s}": torch.zeros_like(weights[f"space.correction.pool_{s}"])
                    for s in "ab"
                }
                correction = CSLS(
                    record["correction"]["k"], record["correction"]["weight"], **pools
                )
            about = record["about"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder}: the aligner is damaged ({error!r}): train it again"
            ) from error
        aligner = cls(
            Preprocessing(means[0]),
            Preprocessing(means[1]),
            SharedSpace(maps[0], maps[1], correction),
            about,
        )
        try:
            nn.ModuleDict(
                {"preprocess": aligner.preprocess, "space": aligner.space}
            ).load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{folder}: weights do not fit aligner.json ({str(error).splitlines()[0]}): train"
                " it again"
            ) from error
        return aligner
