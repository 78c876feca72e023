from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from gera_lightning.encoders.acoustic_units import AcousticUnitEncoder, AcousticUnits
from gera_lightning.utils.errors import UserError

WIDTH, UNITS, DIM, NEAREST = 6, 24, 10, 3


def utterances(count: int = 60, seed: int = 0, width: int = WIDTH) -> list[np.ndarray]:
    """Frames of unequal scales and lengths: whitening and the sum over time both matter."""
    rng = np.random.default_rng(seed)
    scales = 3.0 ** np.arange(width)
    return [
        (rng.normal(size=(rng.integers(1, 15), width)) * scales + scales).astype(np.float32)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def train() -> list[np.ndarray]:
    return utterances()


@pytest.fixture(scope="module")
def fitted(train: list[np.ndarray]) -> AcousticUnits:
    return AcousticUnits.fit(train, units=UNITS, dim=DIM, nearest=NEAREST)


def slow_histogram(
    frames: np.ndarray, tables: dict[str, np.ndarray], nearest: int, temperature: float
) -> np.ndarray:
    """The shares of the units, frame by frame and unit by unit."""
    total = np.zeros(len(tables["codebook"]))
    for frame in frames.astype(np.float64):
        white = [
            (frame - tables["mean"]) @ tables["whiten"][:, j]
            for j in range(tables["whiten"].shape[1])
        ]
        d2 = np.array(
            [
                sum((w - c) ** 2 for w, c in zip(white, centre, strict=True))
                for centre in tables["codebook"]
            ]
        )
        near = np.argsort(d2)[:nearest]
        weight = np.exp(-(d2[near] - d2[near].min()) / temperature)
        for unit, share in zip(near, weight / weight.sum(), strict=True):
            total[unit] += share
    return total


def slow_row(
    frames: np.ndarray, tables: dict[str, np.ndarray], nearest: int, temperature: float
) -> np.ndarray:
    """The formula of the module's docstring in float64."""
    bag = np.sqrt(slow_histogram(frames, tables, nearest, temperature)) * tables["idf"]
    return (bag / np.sqrt(np.sum(bag**2)) - tables["center"]) @ tables["project"]


def as_float64(units: AcousticUnits) -> dict[str, np.ndarray]:
    return {name: table.double().numpy() for name, table in units.tables.items()}


def test_rows_follow_the_formula(fitted: AcousticUnits):
    new = utterances(8, seed=1)
    expected = [slow_row(frames, as_float64(fitted), NEAREST, fitted.temperature) for frames in new]
    made = fitted.encode_frames(new)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=2e-5)


def test_fitted_idf_is_the_formula_over_training_utterances(
    fitted: AcousticUnits, train: list[np.ndarray]
):
    heard = np.array(
        [slow_histogram(f, as_float64(fitted), NEAREST, fitted.temperature) > 0 for f in train]
    ).sum(0)
    np.testing.assert_allclose(
        fitted.tables["idf"].numpy(), np.log((1 + len(train)) / (1 + heard)) + 1, rtol=1e-5
    )


def test_whitened_training_frames_have_unit_covariance(
    fitted: AcousticUnits, train: list[np.ndarray]
):
    tables = as_float64(fitted)
    white = (np.concatenate(train).astype(np.float64) - tables["mean"]) @ tables["whiten"]
    np.testing.assert_allclose(np.cov(white.T), np.eye(white.shape[1]), atol=1e-3)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)


def test_projection_is_the_pca_of_training_bags(fitted: AcousticUnits, train: list[np.ndarray]):
    """Projected training rows are centred, uncorrelated, and hold the largest variances (against an
    SVD of the bags).
    """
    tables = as_float64(fitted)
    bags = np.array(
        [
            np.sqrt(slow_histogram(f, tables, NEAREST, fitted.temperature)) * tables["idf"]
            for f in train
        ]
    )
    bags /= np.linalg.norm(bags, axis=1, keepdims=True)
    largest = np.linalg.svd(bags - bags.mean(0), compute_uv=False)[:DIM] ** 2
    rows = fitted.encode_frames(train).astype(np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.T @ rows, np.diag(largest), atol=2e-3 * largest[0])


def test_fit_is_deterministic(fitted: AcousticUnits, train: list[np.ndarray]):
    again = AcousticUnits.fit(train, units=UNITS, dim=DIM, nearest=NEAREST)
    assert np.array_equal(fitted.encode_frames(train), again.encode_frames(train))


def test_saved_and_loaded_give_identical_rows(
    fitted: AcousticUnits, train: list[np.ndarray], tmp_path
):
    fitted.save(tmp_path / "units")
    loaded = AcousticUnits.load(tmp_path / "units")
    assert loaded.describe() == fitted.describe()
    assert np.array_equal(loaded.encode_frames(train), fitted.encode_frames(train))


def test_rows_do_not_depend_on_their_company(fitted: AcousticUnits):
    """130 utterances fill more than one chunk."""
    many = utterances(130, seed=2)
    one_by_one = np.concatenate([fitted.encode_frames([frames]) for frames in many])
    np.testing.assert_allclose(fitted.encode_frames(many), one_by_one, atol=1e-5)


def test_a_bag_forgets_order(fitted: AcousticUnits):
    frames = utterances(1, seed=3)[0]
    np.testing.assert_allclose(
        fitted.encode_frames([frames]), fitted.encode_frames([frames[::-1].copy()]), atol=1e-5
    )


def test_no_utterances_give_no_rows(fitted: AcousticUnits):
    assert fitted.encode_frames([]).shape == (0, DIM)


def test_an_utterance_without_frames_is_refused(fitted: AcousticUnits, train: list[np.ndarray]):
    empty = np.empty((0, WIDTH), dtype=np.float32)
    with pytest.raises(UserError, match="no frames"):
        fitted.encode_frames([train[0], empty])
    with pytest.raises(UserError, match="no frames"):
        AcousticUnits.fit([*train, empty], units=UNITS, dim=DIM, nearest=NEAREST)


def test_frames_of_another_width_are_refused(fitted: AcousticUnits):
    with pytest.raises(UserError, match=f"width 5.*{WIDTH}"):
        fitted.encode_frames(utterances(1, width=5))


@pytest.mark.parametrize(("units", "dim"), [(10_000, DIM), (UNITS, 61), (UNITS, UNITS + 1)])
def test_too_little_data_is_refused(train: list[np.ndarray], units: int, dim: int):
    with pytest.raises(UserError, match="too few"):
        AcousticUnits.fit(train, units=units, dim=dim)


def test_load_refuses_a_missing_folder_and_another_version(fitted: AcousticUnits, tmp_path):
    with pytest.raises(UserError, match="no acoustic units"):
        AcousticUnits.load(tmp_path / "nowhere")
    fitted.save(tmp_path)
    record = json.loads((tmp_path / "units.json").read_text())
    (tmp_path / "units.json").write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        AcousticUnits.load(tmp_path)


def test_saved_tables_are_plain_safetensors(fitted: AcousticUnits, tmp_path):
    fitted.save(tmp_path)
    tables = safetensors.numpy.load_file(tmp_path / "units.safetensors")
    assert {name: table.shape for name, table in tables.items()} == {
        "mean": (WIDTH,),
        "whiten": (WIDTH, WIDTH),
        "codebook": (UNITS, WIDTH),
        "idf": (UNITS,),
        "center": (UNITS,),
        "project": (UNITS, DIM),
    }


@pytest.mark.parametrize("name", ["mean", "whiten", "codebook", "idf", "center", "project"])
def test_units_of_other_values_are_described_otherwise(fitted: AcousticUnits, name: str):
    """By what an encoder says of itself a finished store is told from another's."""
    tables = {**fitted.tables, name: fitted.tables[name].clone()}
    tables[name].view(-1)[-1] += 0.5
    other = AcousticUnits(tables, fitted.nearest, fitted.temperature)
    assert (
        {**other.describe(), "tables": fitted.describe()["tables"]}
        == fitted.describe()
        != other.describe()
    )


def test_encoder_is_frames_then_units(fitted: AcousticUnits):
    class Frames:
        name = "stub"

        def frames(self, audio: np.ndarray) -> np.ndarray:
            return audio.reshape(-1, WIDTH)

    encoder = AcousticUnitEncoder(fitted, frames=Frames())
    audio = [frames.ravel() for frames in utterances(4, seed=4)]
    assert encoder.dim == DIM
    assert np.array_equal(
        encoder.encode(audio), fitted.encode_frames([a.reshape(-1, WIDTH) for a in audio])
    )
    assert encoder.describe() == {"name": encoder.name, "frames": "stub", **fitted.describe()}
