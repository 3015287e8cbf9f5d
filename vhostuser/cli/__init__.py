"""The programs ``vhostuser DEVICE``, ``vhostuser serve`` and ``vhost-user-net``, after QEMU's conventions; the tools.

The programs stay in the foreground, end quickly and with status 0 on SIGTERM, and say in one sentence on stderr why
they cannot start. Here devices, their options and the runtime are joined: ``commands`` has the devices, ``file`` reads
many guests from one file, ``running`` serves one or many. Each tool has a module of its own name.
"""

from vhostuser.cli.commands import main, net_main

__all__ = ["main", "net_main"]
