"""The `turnwise` command; `python -m turnwise_cli` is the same."""

import sys


def main() -> int:
    """Runs the command line and returns its exit code."""
    try:
        from turnwise_cli.verbs import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("turnwise"):
            raise
        sys.stderr.write(f"The turnwise command needs: pip install 'turnwise[cli]' (missing: {error.name})\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
