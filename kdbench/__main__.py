"""The `kdbench` command, which is ``python -m kdbench`` as well."""

import sys


def main() -> None:
    """Run the command; who interrupts it while it is being imported is told so, as later."""
    try:
        from kdbench.harness.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
