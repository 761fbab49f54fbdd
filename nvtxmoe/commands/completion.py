"""The script that completes commands and options in bash, zsh or fish."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nvtxmoe.commands._common import command

SHELLS = ("bash", "zsh", "fish")


@command("completion", "nvtxmoe completion bash")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes nvtxmoe in a shell: commands, options, their values and files.

    \b
    For each new shell, add this line to
      ~/.bashrc                   eval "$(nvtxmoe completion bash)"
      ~/.zshrc                    eval "$(nvtxmoe completion zsh)"
      ~/.config/fish/config.fish  nvtxmoe completion fish | source
    """
    made = get_completion_class(shell)
    assert made is not None, shell  # click has all of SHELLS
    click.echo(made(ctx.find_root().command, {}, "nvtxmoe", "_NVTXMOE_COMPLETE").source())
