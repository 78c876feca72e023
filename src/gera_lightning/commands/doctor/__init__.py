"""Say whether two stores can be aligned, and how.

gera doctor STORE_A STORE_B [budget=300 k=16 methods=[gera,ridge]]
"""

from __future__ import annotations

from collections.abc import Sequence

from gera_lightning.config.overrides import parse_kwargs
from gera_lightning.utils.errors import UserError


def run(words: Sequence[str]) -> None:
    """The command line's `gera doctor`."""
    if len(words) < 2 or "=" in words[1]:
        raise UserError(
            "gera doctor takes two stores, such as: gera doctor data/emoji/image data/emoji/text"
        )
    from gera_lightning.commands.doctor.examine import ERROR, examine, verdict

    findings = []
    for finding in examine(words[0], words[1], **parse_kwargs(words[2:], examine)):
        findings.append(finding)
        print(finding, flush=True)
    if any(finding.mark == ERROR for finding in findings):
        raise UserError(verdict(findings))
    print(verdict(findings))
