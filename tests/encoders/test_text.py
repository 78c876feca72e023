"""Pooling, prefixes and sentence-transformers folders, on a tiny random BERT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import BertModel, BertTokenizerFast

from gera_lightning.encoders.text import POOLINGS, TextEncoder, pool_tokens
from gera_lightning.utils.errors import UserError

TEXTS = [
    "a dog",
    "the small red cat runs over the house",
    "dogs",
    "a small house",
    "the red dog runs",
    "",
]


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("bert")


def test_the_vocabulary_is_used(checkpoint: Path):
    """Guards the tests here: with every word unknown they would all pass on constants."""
    encoder = TextEncoder(checkpoint)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer("dogs")["input_ids"]) == [
        "[CLS]",
        "dog",
        "##s",
        "[SEP]",
    ]
    assert np.abs(encoder.encode(["dog"]) - encoder.encode(["cat"])).max() > 1e-3


def test_mean_pooling_equals_a_loop_over_tokens(checkpoint: Path):
    encoder = TextEncoder(checkpoint, normalize=False)
    for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        tokens = encoder.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            states = encoder.model(**tokens).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row, sum(states) / len(states), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_several_layers_are_those_of_one_each_in_one_pass(checkpoint: Path, pooling: str):
    """Against hooks on the layers, one unpadded text at a time."""
    encoder = TextEncoder(
        checkpoint, layer=[-1, 0, 1], pooling=pooling, normalize=False, batch_size=4
    )
    seen: dict[int, torch.Tensor] = {}
    passes: list[int] = []
    for number, block in enumerate(encoder.model.encoder.layer):
        block.register_forward_pre_hook(lambda _, args, n=number: seen.__setitem__(n, args[0]))
    encoder.model.encoder.register_forward_hook(
        lambda _, args, out: seen.__setitem__(2, out.last_hidden_state) or passes.append(1)
    )
    rows = encoder.encode(TEXTS)
    assert (rows.shape, len(passes), encoder.describe()["layer"]) == (
        (len(TEXTS), 3, 16),
        2,
        [0, 1, 2],
    )
    for text, row in zip(TEXTS, rows, strict=True):
        encoder.encode([text])
        for layer in range(3):
            expected = pool_tokens(
                seen[layer], torch.ones(seen[layer].shape[:2], dtype=torch.long), pooling
            )[0]
            np.testing.assert_allclose(row[layer], expected, atol=1e-5)
    np.testing.assert_allclose(
        TextEncoder(checkpoint, layer=1, pooling=pooling, normalize=False).encode(TEXTS),
        rows[:, 1],
        atol=1e-5,
    )


def test_long_texts_are_cut(checkpoint: Path):
    encoder = TextEncoder(checkpoint, max_tokens=5)  # [CLS], three words, [SEP]
    np.testing.assert_allclose(
        encoder.encode(["the red dog runs over"]), encoder.encode(["the red dog"]), atol=1e-6
    )
    assert TextEncoder(checkpoint).max_tokens == 32, "as many as the network has positions"


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
    with pytest.raises(UserError) as caught:
        TextEncoder(checkpoint, pooling="maen")
    assert (caught.value.key, caught.value.value) == ("pooling", "maen")


def test_description_names_what_changes_the_vectors(checkpoint: Path):
    about = TextEncoder(
        checkpoint, name="tiny", pooling="cls", max_tokens=7, prefix="the "
    ).describe()
    revision = about.pop("revision")
    assert about == {
        "class": "text",
        "name": "tiny",
        "dim": 16,
        "pooling": "cls",
        "preprocessing": "tokens of BertTokenizer, the first 7",
        "normalize": True,
        "layer": 2,
        "max_tokens": 7,
        "prefix": "the ",
    }
    assert revision.startswith("sha256:")


def test_revision_changes_with_the_weights(checkpoint: Path, tmp_path: Path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert TextEncoder(copy).revision == TextEncoder(checkpoint).revision
    model = BertModel.from_pretrained(copy)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias.add_(0.5)
    model.save_pretrained(copy)
    assert TextEncoder(copy).revision != TextEncoder(checkpoint).revision


def sentence_folder(
    checkpoint: Path,
    folder: Path,
    pooling: dict[str, Any],
    modules: tuple[str, ...] = ("Transformer", "Pooling"),
) -> Path:
    """The checkpoint as sentence-transformers saves one."""
    shutil.copytree(checkpoint, folder)
    paths = {"Transformer": ""}
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": paths.get(m, f"{i}_{m}"),
            "type": f"sentence_transformers.models.{m}",
        }
        for i, m in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, **pooling})
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 6, "do_lower_case": False})
    )
    return folder


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_a_sentence_folder_says_how_it_pools(
    checkpoint: Path, tmp_path: Path, config: dict[str, Any], pooling: str
):
    encoder = TextEncoder(sentence_folder(checkpoint, tmp_path / "st", config))
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == (pooling, False, 6)
    expected = TextEncoder(checkpoint, pooling=pooling, normalize=False, max_tokens=6).encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)


def test_a_sentence_folder_says_whether_it_normalises(checkpoint: Path, tmp_path: Path):
    three = ("Transformer", "Pooling", "Normalize")
    folder = sentence_folder(checkpoint, tmp_path / "st", {"pooling_mode_mean_tokens": True}, three)
    np.testing.assert_allclose(
        np.linalg.norm(TextEncoder(folder).encode(TEXTS), axis=1), 1, atol=1e-5
    )
    assert TextEncoder(folder, normalize=False, pooling="cls", max_tokens=9).settings() == {
        "normalize": False,
        "layer": 2,
        "max_tokens": 9,
        "prefix": "",
    }


@pytest.mark.parametrize(
    ("config", "modules", "named"),
    [
        ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense"), "'Dense'"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            ("Transformer", "Pooling"),
            r"mean\+max",
        ),
        ({"pooling_mode_weightedmean_tokens": True}, ("Transformer", "Pooling"), "weightedmean"),
    ],
)
def test_a_sentence_folder_that_cannot_be_honoured_is_refused(
    checkpoint: Path, tmp_path: Path, config, modules, named: str
):
    with pytest.raises(UserError, match=named):
        TextEncoder(sentence_folder(checkpoint, tmp_path / "st", config, modules))


def test_prefix_stands_before_each_text(checkpoint: Path):
    plain, prefixed = TextEncoder(checkpoint), TextEncoder(checkpoint, prefix="the red ")
    np.testing.assert_allclose(
        prefixed.encode(TEXTS), plain.encode(["the red " + text for text in TEXTS]), atol=1e-6
    )
    assert np.abs(prefixed.encode(TEXTS) - plain.encode(TEXTS)).max() > 1e-3


def test_prefix_may_be_left_out_of_the_pooling(checkpoint: Path, tmp_path: Path):
    """Against a loop over the tokens behind [CLS] and the prefix, as sentence-transformers pools
    with include_prompt false.
    """
    folder = sentence_folder(
        checkpoint, tmp_path / "st", {"pooling_mode_mean_tokens": True, "include_prompt": False}
    )
    encoder = TextEncoder(folder, prefix="the red ", max_tokens=20)
    for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        tokens = encoder.tokenizer("the red " + text, return_tensors="pt")
        with torch.inference_mode():
            states = encoder.model(**tokens).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row, sum(states[3:]) / len(states[3:]), atol=1e-5)


def test_padding_stands_behind_whatever_the_tokenizer_says(checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(checkpoint, tmp_path / "left")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    assert BertTokenizerFast.from_pretrained(folder).padding_side == "left"
    np.testing.assert_allclose(
        TextEncoder(folder).encode(TEXTS), TextEncoder(checkpoint).encode(TEXTS), atol=1e-6
    )


def test_of_an_encoder_decoder_the_encoder_is_used(checkpoints: Callable[[str], Path]):
    encoder = TextEncoder(checkpoints("t5"))
    assert not any("decoder" in name for name, _ in encoder.model.named_parameters())


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_two_towers_the_text_is_taken_and_texts_are_cut_at_its_positions(tmp_path, kind):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size["intermediate_size"] = 32
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat"]
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {**size, **ids, "vocab_size": len(words), "max_position_embeddings": 12}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path)
    encoder = TextEncoder(tmp_path, max_tokens=77, normalize=False)
    long = "a dog " * 20
    assert encoder.max_tokens == 12
    assert encoder.is_cut(["a dog", long]) == [False, True]
    [row, cut] = encoder.encode(["a dog", long])
    tokens = tokenizer("a dog", return_tensors="pt")
    with torch.inference_mode():
        states = model.text_model(tokens["input_ids"], tokens["attention_mask"])[0]
    np.testing.assert_allclose(row, states.mean(1)[0], atol=1e-5)
    assert np.isfinite(cut).all()
