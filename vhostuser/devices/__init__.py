"""The devices, one module or package each: they know their virtqueues and their host side, no vhost-user message."""
