"""Frames and descriptors over UNIX sockets, and the ways in which such a socket comes to be."""
