"""Guest memory and virtqueues: everything that touches what a guest can change while we look at it.

Knows buffers and integers; knows nothing of messages, sockets or Trio. The modules ``memory``, ``ring``, ``split`` and
``pump`` are annotated Python: compiled by Cython where a C compiler works, interpreted where none does. The operations
that differ between the two (loads, stores, fences, system calls on raw addresses) have two editions with the same
names: ``primitives.h``, declared in ``primitives.pxd``, and ``primitives.py``; likewise ``guard.h`` and ``guard.py``.
"""
