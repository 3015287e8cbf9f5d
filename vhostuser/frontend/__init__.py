"""The other end of the protocol, and a driver's side of the rings: for tests, the demo and protocol tools."""
