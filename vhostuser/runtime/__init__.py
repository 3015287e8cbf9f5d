"""Where messages, memory, rings and a device meet; the only place that knows them all, and no particular device.

``serve`` takes connections one after another. A ``connection`` is one front-end's conversation, with a handler of
``handlers`` for each request. ``groups`` runs the threads that turn rings.
"""
