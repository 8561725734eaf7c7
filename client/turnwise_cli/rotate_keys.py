"""`turnwise rotate-keys`: a new key for continuation tokens."""

from pathlib import Path

import click

from turnwise_actor.tokens import KeyFileError, rotate_keys
from turnwise_cli.learner_calls import data_option


@click.command(short_help="Seal continuation tokens with a new key.")
@data_option
@click.option(
    "--keys", type=click.Path(path_type=Path), help="The key file; else keys/token-keys.json in --data."
)
def command(data: Path, keys: Path | None) -> None:
    """Seal continuation tokens with a new key from now on; running actors take it up within about a second.

    The keys before it go on opening tokens for as long as tokens may be old, 90 days, and are removed by the
    next rotation after that. Where a key fell into wrong hands, remove it from the file.
    """
    try:
        kept = rotate_keys(keys or data / "keys" / "token-keys.json")
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"a new key is active; {kept} older {'opens' if kept == 1 else 'open'} tokens still")
