"""``python -m edgeprune``: the command line without the script on PATH."""

from edgeprune.cli import main

main()
