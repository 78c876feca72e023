import numpy as np
import torch
from scipy.special import softmax

from gera_lightning.filters import LocalCentering
from gera_lightning.models.maps import normalized


def pool(n=200, d=6, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)


def speakers(n=300, d=20, seed=0, spread=1.0):
    """Rows of six speakers: a speaker's place plus content; returns rows, content and speaker."""
    rng = np.random.default_rng(seed)
    who, content = rng.integers(6, size=n), rng.normal(size=(n, d)) / d**0.5
    places = spread * np.random.default_rng(7).normal(size=(6, d)) / d**0.5
    return torch.from_numpy(places[who] + 0.5 * content), torch.from_numpy(content), who


def test_local_centering_equals_a_slow_loop():
    x = normalized(pool())
    mapping = LocalCentering(clusters=5, temperature=0.2).fit(x)
    means = mapping.means.numpy()
    expected = []
    for row in x.numpy():
        cosines = np.array([row @ m / np.linalg.norm(row) / np.linalg.norm(m) for m in means])
        expected.append(row - softmax(cosines / 0.2) @ means)
    np.testing.assert_allclose(mapping(x), expected, atol=1e-12)


def test_cluster_means_are_means_of_the_rows_nearest_to_them():
    x = normalized(pool())
    means = LocalCentering(clusters=4).fit(x).means
    nearest = torch.cdist(x, means).argmin(1)
    for number in range(4):
        torch.testing.assert_close(means[number], x[nearest == number].mean(0), atol=1e-3, rtol=0)


def test_one_sharp_cluster_for_every_speaker_leaves_the_content():
    x, content, who = speakers(spread=4.0)
    left = LocalCentering(clusters=6, temperature=0.01).fit(x)(x)
    between = [left[who == s].mean(0).norm().item() for s in range(6)]
    assert max(between) < 1e-6  # every speaker's mean is gone
    before, after = (
        np.corrcoef((z @ z.T).numpy().ravel(), (content @ content.T).numpy().ravel())[0, 1]
        for z in (x, left)
    )
    assert after > 0.9 > 0.5 > before
