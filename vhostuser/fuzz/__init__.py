"""A fuzzer for either end of the protocol: whole conversations, from the table of requests and the session's states."""
