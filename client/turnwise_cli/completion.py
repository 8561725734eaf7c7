"""`turnwise completion`: the script that makes a shell complete verbs and options."""

import click
from click.shell_completion import get_completion_class

from turnwise_cli.verbs import cli


@click.command(short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(turnwise completion bash)"      in ~/.bashrc
    zsh:   eval "$(turnwise completion zsh)"       in ~/.zshrc
    fish:  turnwise completion fish | source       in ~/.config/fish/config.fish
    """  # noqa: D301 click wants the character itself
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(cli, {}, "turnwise", "_TURNWISE_COMPLETE").source())
