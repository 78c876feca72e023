"""Say whether two stores can be aligned, and how.

gera doctor STORE_A STORE_B [budget=300 k=16 methods=[coupled_ridge,ridge]]
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.commands.doctor.checks import ERROR, Finding
from gera_lightning.commands.doctor.examine import doctor, verdict
from gera_lightning.config.overrides import parse_kwargs, split_paths
from gera_lightning.utils.errors import UserError

__all__ = ["Finding", "doctor", "run", "verdict"]


def run(words: Sequence[str]) -> None:
    """The command line's `gera doctor`."""
    a, b, rest = split_paths(
        words, "doctor", "two stores", "data/pictures/image data/pictures/text"
    )
    findings = []
    for finding in doctor(a, b, **parse_kwargs(rest, doctor)):
        findings.append(finding)
        print(finding, flush=True)
    if any(finding.level == ERROR for finding in findings):
        raise UserError(verdict(findings))
    print(verdict(findings))
