"""``python -m vhostuser``."""

from vhostuser.cli import main

main()
