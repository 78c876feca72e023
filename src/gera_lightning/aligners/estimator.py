"""Closed forms on plain arrays, in scikit-learn's manner: `fit`, then encode, score and search.

Legend: `n` pairs, `N_a`, `N_b` unpaired rows, `D_a`, `D_b` frozen widths, `D` shared width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from gera_lightning.aligners.aligner import Aligner, Rows
from gera_lightning.aligners.base import ClosedForm, FitData, Maps, Setting
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.models.shared_space import SharedSpace
from gera_lightning.utils.arrays import Array, finite_rows
from gera_lightning.utils.errors import UserError, did_you_mean
from gera_lightning.utils.instantiate import short_name


class Estimator(ClosedForm):
    """A closed form that is fitted on arrays, encodes and searches: `Ridge().fit(x_a, x_b)`.

    A form of your own inherits this and writes `settings` and `candidates`:

    >>> from gera_lightning.models.maps import Identity, Linear
    >>> class LeastSquares(Estimator):
    ...     def settings(self, count, pairs):
    ...         return [{}]
    ...
    ...     def candidates(self, samples, settings):
    ...         weight = torch.linalg.pinv(samples.x_a) @ samples.x_b
    ...         for _ in settings:
    ...             yield Linear(*weight.shape, weight=weight), Identity(weight.shape[1])
    >>> x_a = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    >>> form = LeastSquares().fit(x_a[:80], 2 * x_a[:80].flip(1))
    >>> scores, rows = form.search(x_a[80:], x_a[80:].flip(1), k=1)
    >>> rows[:, 0].tolist() == list(range(20))
    True

    Attributes:
        aligner_: after `fit`, the `Aligner`: `aligner_.save(path)` keeps it.
        setting_: after `fit`, the setting that was fitted.
    """

    aligner_: Aligner
    setting_: Setting

    def default_setting(self, pairs: int) -> Setting:
        """What `fit` takes for the parameters that it is not given, for a number of pairs."""
        return self.settings(1, pairs)[0]

    @torch.no_grad()
    def fit(
        self,
        x_a: Array,
        x_b: Array,
        unpaired_a: Array | None = None,
        unpaired_b: Array | None = None,
        **setting: float,
    ) -> Self:
        """Fit on pairs, with rows normalised, centred and normalised again as in training.

        One setting is fitted: what the keywords give, and `default_setting` for the rest. Nothing
        is tuned here; `align(x_a, x_b, method=...)` chooses the setting by cross-validation.

        Args:
            x_a, x_b: paired rows `[n, D_a]`, `[n, D_b]`, tensors or NumPy arrays; row i of one
                belongs to row i of the other. What is fitted lies on the device of `x_a`.
            unpaired_a, unpaired_b: more rows of each modality `[N_a, D_a]`, `[N_b, D_b]`: they
                count for the mean, and for forms that read them.
            setting: the form's free parameters by name, such as `penalty=0.3`.

        Returns:
            the form itself.

        Raises:
            UserError: rows that do not fit each other, an unknown parameter, or one that gives no
                finite maps.
        """
        x_a, x_b = finite_rows(x_a, "x_a"), finite_rows(x_b, "x_b")
        if len(x_a) != len(x_b):
            raise UserError(f"must have a row for each of the {len(x_a)} rows of x_a", key="x_b")
        if len(x_a) < 2:
            raise UserError("must hold at least 2 pairs", key="x_a")
        preprocess_a, pairs_a, pool_a = _preprocessed(x_a, unpaired_a, "unpaired_a", x_a.device)
        preprocess_b, pairs_b, pool_b = _preprocessed(x_b, unpaired_b, "unpaired_b", x_a.device)
        chosen = _completed(setting, self.default_setting(len(x_a)))
        maps = self._finite_maps(FitData(pairs_a, pairs_b, pool_a, pool_b), chosen)
        dims = {"dim_a": x_a.shape[1], "dim_b": x_b.shape[1]}
        kept = {"method": short_name(type(self)), "setting": dict(chosen), "budget": len(x_a)}
        aligner = Aligner(preprocess_a, preprocess_b, SharedSpace(*maps), {**kept, **dims})
        # past the lock of a frozen dataclass: its fields say what the form is, not what it fitted
        object.__setattr__(self, "aligner_", aligner)
        object.__setattr__(self, "setting_", chosen)
        return self

    def _finite_maps(self, samples: FitData, setting: Setting) -> Maps:
        """The maps of one setting."""
        try:
            [maps] = self.candidates(samples, [setting])
            tensors = [values for part in maps for values in part.state_dict().values()]
            if all(values.isfinite().all() for values in tensors):
                return maps
            reason = "it divides by 0"
        except torch.linalg.LinAlgError as error:
            reason = str(error)
        raise UserError(
            f"gives no finite maps ({reason})",
            key=type(self).__name__,
            value=dict(setting),
            remedy="take a larger penalty, or rows that are not all alike",
        )

    def encode_a(self, x: Rows) -> Tensor:
        """Unit rows `[n, D]` in the shared space, see `Aligner.encode_a`."""
        return self._fitted.encode_a(x)

    def encode_b(self, x: Rows) -> Tensor:
        """Unit rows `[n, D]` in the shared space, see `Aligner.encode_b`."""
        return self._fitted.encode_b(x)

    def score(self, x_a: Rows, x_b: Rows) -> Tensor:
        """Cosine of every row of a with every row of b, `[n_a, n_b]`, see `Aligner.score`."""
        return self._fitted.score(x_a, x_b)

    def search(
        self, queries: Rows, gallery: Rows, k: int = 10, *, direction: str = "ab"
    ) -> tuple[Tensor, Tensor]:
        """Scores and numbers of the k best gallery rows per query, see `Aligner.search`."""
        return self._fitted.search(queries, gallery, k, direction=direction)

    def get_params(self) -> dict[str, Any]:
        """The form's fields, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def _fitted(self) -> Aligner:
        aligner = getattr(self, "aligner_", None)
        if aligner is None:
            raise UserError(
                "is not fitted", key=type(self).__name__, remedy="call fit(x_a, x_b) first"
            )
        return aligner

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        setting = getattr(self, "setting_", None)
        fitted = "" if setting is None else f" fitted with {_words(setting)}"
        return f"{type(self).__name__}({fields}){fitted}"


def default_setting(form: ClosedForm, pairs: int) -> Setting:
    """The default setting of any closed form, an `Estimator` or not."""
    if isinstance(form, Estimator):
        return form.default_setting(pairs)
    return form.settings(1, pairs)[0]


def _words(setting: Setting) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in setting.items()) or "no setting"


def _preprocessed(
    x: Tensor, unpaired: Array | None, name: str, device: torch.device
) -> tuple[Preprocessing, Tensor, Tensor]:
    """The preprocessing of a modality, and its preprocessed pairs and unpaired rows."""
    rows = x.to(device)
    if unpaired is not None:
        rows = torch.cat([rows, finite_rows(unpaired, name, x.shape[1]).to(device)])
    preprocess = Preprocessing.fit(rows)
    rows = preprocess(rows)
    return preprocess, rows[: len(x)], rows[len(x) :]


def _completed(given: Mapping[str, float], default: Setting) -> Setting:
    """The default setting with the parameters that are given in their place."""
    for name, value in given.items():
        if name not in default:
            raise UserError(
                f"is no parameter of this form{did_you_mean(name, default)}", key=name, value=value
            )
        if not isinstance(value, Real) or not 0 <= value < math.inf:
            raise UserError("must be a number of at least 0", key=name, value=value)
    return {**default, **{name: float(value) for name, value in given.items()}}
