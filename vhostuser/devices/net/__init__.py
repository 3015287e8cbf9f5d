"""The virtio network device: a pump between two rings and a port that keeps packet boundaries.

``header`` judges what a driver says about a packet, ``pump`` moves packets without the GIL, ``device`` joins them with
a port of ``ports`` and with the features that the driver accepted.
"""
