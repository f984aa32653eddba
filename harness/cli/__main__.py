"""``python -m harness.cli`` is the `kdbench` command."""

from harness.cli import main

if __name__ == "__main__":
    main()
