"""Where messages, memory, rings and a device meet; the only place that knows them all, and no particular device.

``serve`` takes connections one after another. A ``connection`` is one front-end's conversation, with a handler of
``handlers`` for each request. Its ``rings`` run while all that they need is known; ``groups`` has the threads for them.
"""
