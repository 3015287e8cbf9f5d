"""The devices, a module or a package each. They know their virtqueues and their host side, and no vhost-user message."""
