"""Bytes to messages and back.

=============  ======================================================================
``frames``     header, payload bytes and descriptors as they stand on the socket
``features``   feature bits that the protocol's own rules depend on
``messages``   payload values, and ``Message``
``requests``   the one table of requests
``layouts``    byte layouts, the only user of Construct
``codec``      frames to messages and back
``meanings``   values in words
``dissect``    bytes of any kind, field by field
=============  ======================================================================

Must not know: sockets, Trio, guest memory, rings, or what was said before.
"""
