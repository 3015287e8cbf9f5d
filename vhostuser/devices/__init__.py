"""The devices, one module or package each. They know their virtqueues and their host side, and no vhost-user message."""
