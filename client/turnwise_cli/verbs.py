"""The list of verbs, and the group that imports a verb only when it is called."""

import difflib
import importlib
import importlib.metadata
import sys
from dataclasses import dataclass

import click
from click.shell_completion import CompletionItem


@dataclass(frozen=True)
class Verb:
    """A verb as `turnwise --help` lists it; its module has the click command as `command`."""

    module: str
    help: str
    """Equal to the command's own short help; here so that the list needs no import."""
    extra: str = "cli"
    """What to install when an import fails."""


VERBS = {
    "up": Verb("up", "Run a learner and actors on this machine.", "learner"),
    "chat": Verb("chat", "Talk to the bot and teach it."),
    "simulate": Verb("simulate", "Let simulated people talk to the bot and rate it."),
    "status": Verb("status", "Show what learner and actors are doing."),
    "versions": Verb("versions", "List the policy versions."),
    "rollback": Verb("rollback", "Go back to an earlier policy version."),
    "explore": Verb("explore", "Show or change how the bot explores."),
    "checkpoint": Verb("checkpoint", "Save a checkpoint now."),
    "resume-report": Verb("resume_report", "Tell what a restart would continue from."),
    "ledger": Verb("ledger", "Check that every turn and every rating is accounted for."),
    "export": Verb("export", "Write the journal's facts to the standard output."),
    "credential": Verb("credential", "Add, list and revoke the credentials of callers."),
    "rotate-keys": Verb("rotate_keys", "Seal continuation tokens with a new key.", "actor"),
    "check": Verb("check", "Check a domain file: errors, warnings, and the size of what it makes.", "actor"),
    "cluster": Verb("cluster", "Run the bot on many machines, with Ray.", "learner"),
    "actor": Verb("actor", "Run one actor.", "actor"),
    "learner": Verb("learner", "Run the learner.", "learner"),
    "completion": Verb("completion", "Print the shell's completion script."),
}


class VerbGroup(click.Group):
    """Imports the module of a verb when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of `VERBS`."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now.

        Raises:
            click.ClickException: A package that the verb needs is not installed.
        """
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        try:
            command = importlib.import_module(f"turnwise_cli.{verb.module}").command
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("turnwise"):
                raise
            raise click.ClickException(
                f"this verb needs: pip install 'turnwise[{verb.extra}]' (missing: {error.name})"
            ) from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, naming the nearest verb when there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " `turnwise --help` lists the verbs."
            raise click.UsageError(f"There is no verb {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes verbs without importing them."""
        names = [
            CompletionItem(name, help=verb.help)
            for name, verb in VERBS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def _version() -> str:
    try:
        return importlib.metadata.version("turnwise")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [OPTIONS] ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(_version(), message="%(prog)s %(version)s")
def cli() -> None:
    """Teach a chatbot's dialogue policy while people talk to it.

    Begin with `turnwise up --domain domain.yaml`, then `turnwise chat` in another terminal.
    """


def run() -> int:
    """Runs the command line of this process and returns its exit code; Ctrl-C is 130 and no traceback."""
    try:
        result = cli.main(prog_name="turnwise", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("\n")
        return 130
    return result if isinstance(result, int) else 0
