"""Whisper out of CTranslate2's file, against the network that the file was written from."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from gera_lightning.encoders.ctranslate2 import TYPES, convert_whisper, read_variables
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.utils.errors import UserError

Checkpoints = Callable[[str], Path]


def written(variables: dict[str, np.ndarray], version: int = 6, aliases: tuple = ()) -> bytes:
    """A `model.bin`."""

    def text(word: str) -> bytes:
        return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"

    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<I", 3)
    out += struct.pack("<I", len(variables))
    for name, values in variables.items():
        out += text(name) + struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        out += struct.pack("<BI", TYPES.index(values.dtype.type), values.nbytes) + values.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(text(alias) + text(name) for alias, name in aliases)


def exported(model: transformers.WhisperModel) -> dict[str, np.ndarray]:
    """The variables that CTranslate2's converter makes of a Whisper model."""
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    out = {}

    def linear(target: str, names: list[str]) -> None:
        out[f"{target}/weight"] = np.concatenate([state[f"{name}.weight"] for name in names])
        zeros = np.zeros(model.config.d_model, dtype=np.float32)
        biases = [state.get(f"{name}.bias", zeros) for name in names]
        out[f"{target}/bias"] = np.concatenate(biases)

    def norm(target: str, name: str) -> None:
        out[f"{target}/gamma"], out[f"{target}/beta"] = (
            state[f"{name}.weight"],
            state[f"{name}.bias"],
        )

    linear("encoder/conv1", ["encoder.conv1"])
    linear("encoder/conv2", ["encoder.conv2"])
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    out["num_heads"] = np.array(model.config.encoder_attention_heads, dtype=np.int16)
    for side in ("encoder", "decoder"):
        positions = state[f"{side}.embed_positions.weight"]
        out[f"{side}/position_encodings/encodings"] = positions
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for number in range(getattr(model.config, f"{side}_layers")):
            target, name = f"{side}/layer_{number}", f"{side}.layers.{number}"
            norm(f"{target}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            own = [f"{name}.self_attn.{kind}_proj" for kind in "qkv"]
            linear(f"{target}/self_attention/linear_0", own)
            linear(f"{target}/self_attention/linear_1", [f"{name}.self_attn.out_proj"])
            if side == "decoder":
                norm(f"{target}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
                cross = f"{name}.encoder_attn"
                linear(f"{target}/attention/linear_0", [f"{cross}.q_proj"])
                linear(f"{target}/attention/linear_1", [f"{cross}.k_proj", f"{cross}.v_proj"])
                linear(f"{target}/attention/linear_2", [f"{cross}.out_proj"])
            norm(f"{target}/ffn/layer_norm", f"{name}.final_layer_norm")
            linear(f"{target}/ffn/linear_0", [f"{name}.fc1"])
            linear(f"{target}/ffn/linear_1", [f"{name}.fc2"])
    return out


def test_a_converted_checkpoint_is_the_network_it_was_written_from(
    checkpoints: Checkpoints, tmp_path: Path
):
    model = transformers.WhisperModel.from_pretrained(checkpoints("whisper")).eval()
    content = written(exported(model))
    convert_whisper(content, tmp_path / "x")
    again = transformers.WhisperModel.from_pretrained(tmp_path / "x").eval()
    assert set(again.state_dict()) == set(model.state_dict())
    for name, values in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], values, rtol=0, atol=0)
    sound = [np.sin(np.arange(8000) / 9).astype(np.float32)]
    encoders = [SpeechEncoder(folder) for folder in (checkpoints("whisper"), tmp_path / "x")]
    np.testing.assert_array_equal(encoders[0].encode(sound), encoders[1].encode(sound))


def test_half_precision_and_aliases_are_read():
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    found = read_variables(written({"a": values}, aliases=(("b", "a"),)))
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], values)


@pytest.mark.parametrize("damage", ["cut", "empty", "another file", "newer", "another model"])
def test_what_is_no_whisper_is_refused(damage: str, tmp_path: Path):
    whole = written({"a": np.zeros(4, dtype=np.float32)})
    content = {
        "cut": whole[:-7],
        "empty": b"",
        "another file": b"text" * 50,
        "newer": written({}, version=7),
        "another model": whole,
    }[damage]
    with pytest.raises(UserError):
        convert_whisper(content, tmp_path / "x")
    assert not (tmp_path / "x").exists()
