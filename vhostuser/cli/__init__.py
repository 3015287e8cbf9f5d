"""The programs ``vhostuser DEVICE``, ``vhostuser serve`` and ``vhost-user-net``, after QEMU's conventions.

They stay in the foreground, end quickly and with status 0 on SIGTERM, and say in one sentence on stderr why they cannot
start. Here devices, their options and the runtime are joined: ``commands`` has the devices, ``file`` reads many guests
from one file, ``running`` serves one or many.

``vhostuser decode`` is a tool for who reads the protocol.
"""

from vhostuser.cli.commands import main, net_main
from vhostuser.cli.decode import decode

main.add_command(decode)

__all__ = ["main", "net_main"]
