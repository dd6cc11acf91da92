"""A script by which a shell completes the words of `entropix`: `entropix completion bash`.

    eval "$(entropix completion bash)"      in ~/.bashrc
    eval "$(entropix completion zsh)"       in ~/.zshrc, after compinit

It completes commands, flags, values where there are only a few, and else names of files. It holds what it needs: no
Python is started at a keystroke, so make it anew after an update.

Exit codes: 0 done; 2 bad flags.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from entropix import presets, samplers
from entropix.console import cli, main_flags, words
from entropix.console.cli import flag
from entropix.console.commands import COMMANDS

_PROG = "python -m entropix.console.completion"
_ZSH = "autoload -Uz bashcompinit && bashcompinit\n"
_SCRIPT = """# How the shell completes `entropix`; written by `entropix completion`.
_entropix() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" offered=
  case "${{COMP_WORDS[1]}}:$before" in
{values}
    completion:completion) offered="bash zsh" ;;
  esac
  if [[ -z $offered && $word == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{flags}
    esac
  elif [[ -z $offered && $COMP_CWORD -eq 1 ]]; then
    offered="{commands}"
  fi
  COMPREPLY=($(compgen -W "$offered" -- "$word"))
}}
complete -o default -F _entropix entropix
"""


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh"]], flag("whose script to print", hint=None)]


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say."""
    flags = cli.parse(Flags, args, prog, __doc__)
    print(
        (_ZSH if flags.shell == "zsh" else "") + script({name: flags_of(name) for name in COMMANDS}), end=""
    )


def flags_of(command: str) -> Mapping[str, words.Known]:
    """The flags of a command by name, the numbers of its default sampler among them."""
    if command == "main":
        flags: Any = main_flags.all_flags(samplers.resolve(presets.PUBLISHED), brief=False)
        more = {"--help-all": words.Known()}
    else:
        module = importlib.import_module(f"entropix.{COMMANDS[command][0]}")
        if not hasattr(module, "Flags"):  # those of lm_eval are the harness's own
            return {}
        flags, more = module.Flags, {}
    found = {**words.known(flags), **more}
    if "--sampler" in found:
        found["--sampler"] = words.Known(1, (*samplers.names(), *["help"] * (command == "main")))
    return found


def script(commands: Mapping[str, Mapping[str, words.Known]]) -> str:
    """What bash reads, of the flags of each command. Those of main are also offered without a command."""
    # `main` comes last.
    patterns = {name: "*" if name == "main" else name for name in sorted(commands, key="main".__eq__)}
    values = [
        f'    {pattern}:{name}) offered="{" ".join(known.choices)}" ;;'
        for command, pattern in patterns.items()
        for name, known in commands[command].items()
        if known.choices
    ]
    flags = [
        f'      {pattern}) offered="{" ".join(commands[name])}" ;;' for name, pattern in patterns.items()
    ]
    return _SCRIPT.format(values="\n".join(values), flags="\n".join(flags), commands=" ".join(commands))


if __name__ == "__main__":
    cli.leave(cli.run(main))
