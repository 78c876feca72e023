"""A tiny random BERT checkpoint with a vocabulary made by hand: no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from gera_lightning.encoders.text import POOLINGS, TextEncoder, pool_tokens
from gera_lightning.errors import UserError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "dog", "cat", "runs", "over", "the", "red", "house", "##s"]
TEXTS = ["a dog", "the small red cat runs over the house", "dogs", "a small house", "the red dog runs", ""]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-bert")
    words = folder / "words.txt"
    words.write_text("\n".join(VOCABULARY) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(words), vocab_file=str(words)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_equals_one_by_one(checkpoint: Path, pooling: str):
    encoder = TextEncoder(checkpoint, pooling=pooling, batch_size=4)
    together = encoder.encode(TEXTS)
    assert together.shape == (len(TEXTS), encoder.dim)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([text]) for text in TEXTS]), atol=1e-5)


def test_the_vocabulary_is_used(checkpoint: Path):
    """Guards the tests here: with every word unknown they would all pass on constants."""
    encoder = TextEncoder(checkpoint)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer("dogs")["input_ids"]) == ["[CLS]", "dog", "##s", "[SEP]"]
    assert np.abs(encoder.encode(["dog"]) - encoder.encode(["cat"])).max() > 1e-3


def test_rows_keep_the_given_order(checkpoint: Path):
    encoder = TextEncoder(checkpoint, batch_size=2)
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_allclose(encoder.encode([TEXTS[i] for i in order]), encoder.encode(TEXTS)[order], atol=1e-5)


def test_rows_are_normalised_on_request(checkpoint: Path):
    unit, raw = TextEncoder(checkpoint).encode(TEXTS), TextEncoder(checkpoint, normalize=False).encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), unit, atol=1e-5)


def test_mean_pooling_equals_a_loop_over_tokens(checkpoint: Path):
    encoder = TextEncoder(checkpoint, normalize=False)
    for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        tokens = encoder.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            states = encoder.model(**tokens).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row, sum(states) / len(states), atol=1e-5)


def test_long_texts_are_cut(checkpoint: Path):
    encoder = TextEncoder(checkpoint, max_tokens=5)  # [CLS], three words, [SEP]
    np.testing.assert_allclose(encoder.encode(["the red dog runs over"]), encoder.encode(["the red dog"]), atol=1e-6)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 20.0]), ("last", [3.0, 30.0])])
def test_padding_is_masked(pooling: str, expected: list[float], left: bool):
    real = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    padding = torch.full((2, 2), 1e6)
    states = torch.cat([padding, real] if left else [real, padding])
    mask = torch.tensor([0, 0, 1, 1, 1] if left else [1, 1, 1, 0, 0])
    assert pool_tokens(states[None], mask[None], pooling).tolist() == [expected]


def test_cls_pooling_takes_the_first_token():
    states = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(pool_tokens(states, torch.ones(2, 3, dtype=torch.long), "cls"), states[:, 0])


def test_an_unknown_pooling_is_named(checkpoint: Path):
    with pytest.raises(UserError, match="pooling='max' is not one of mean, cls, last"):
        TextEncoder(checkpoint, pooling="max")


def test_description_names_what_changes_the_vectors(checkpoint: Path):
    encoder = TextEncoder(checkpoint, name="tiny", pooling="cls", max_tokens=7)
    assert encoder.describe() == {"name": "tiny", "revision": None, "dim": 16, "pooling": "cls", "normalize": True, "max_tokens": 7}
