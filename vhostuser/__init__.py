"""vhostuser: a vhost-user back-end, and a toolbox for people who work on the protocol."""

__version__ = "0.1.0"
