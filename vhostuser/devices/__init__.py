"""The devices: ``net`` and ``rng``. Each knows its virtqueues and its host side, and no vhost-user message."""
