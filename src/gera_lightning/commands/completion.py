"""Print a script that completes verbs, experiments, methods and settings on the Tab key of bash.

    gera completion bash > ~/.local/share/bash-completion/completions/gera

Or, without the package bash-completion: `source` what it prints. Experiments and presets are looked
for in `experiments/` of the folder where Tab is hit; what comes with the package is written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gera_lightning.commands import VERBS
from gera_lightning.config.loading import SHIPPED, presets
from gera_lightning.config.reference import reference
from gera_lightning.utils.errors import check_one_of

SHELLS = ("bash",)
SCRIPT = """\
_gera() {
  # bash cuts words at "=": `word` is the whole one, `current` what bash replaces
  local word=${COMP_LINE:0:COMP_POINT} current=${COMP_WORDS[COMP_CWORD]} choices
  local before=${word%"${word##* }"}
  word=${word##* }
  case $word in
    method=* | methods=[* | reference=* | baseline=*)
      choices="@METHODS@ $(_gera_files experiments/methods)" ;;
    *=*) return ;;
    *) case $(wc -w <<<"$before") in
        1) choices="@VERBS@" ;;
        2) choices="@EXPERIMENTS@ $(_gera_files experiments)" ;;
        *) choices="@KEYS@" ;;
      esac ;;
  esac
  local stem=${current##*[=,[]}
  local kept=${current%"$stem"}
  COMPREPLY=($(compgen -P "${kept#=}" -W "$choices" -- "$stem"))
  [[ ${COMPREPLY[0]} != *= && $word != *"["* ]] || compopt -o nospace 2>/dev/null
}
_gera_files() {
  local file
  for file in "$1"/*.yaml; do
    [[ ! -e $file ]] || basename "$file" .yaml
  done
}
complete -o default -F _gera gera
"""


def completion(shell: str = "bash") -> str:
    """The script for a shell.

    Args:
        shell: `bash`.

    Raises:
        UserError: another shell.
    """
    check_one_of("shell", shell, SHELLS)
    experiments = [file.name for file in (SHIPPED / "experiments").iterdir()]
    words = {
        "VERBS": sorted(VERBS),
        "METHODS": sorted(presets(Path("nothing"))),
        "EXPERIMENTS": sorted(name.removesuffix(".yaml") for name in experiments),
        "KEYS": ["method=", *(f"{setting.key}=" for setting in reference())],
    }
    script = SCRIPT
    for name, known in words.items():
        script = script.replace(f"@{name}@", " ".join(known))
    return script


def run(words: Sequence[str]) -> None:
    """The command line's `gera completion`."""
    print(completion(*words[:1]), end="")
