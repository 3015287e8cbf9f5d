"""Harnesses for Atheris, packed as OSS-Fuzz and ClusterFuzzLite expect them; ``docs/fuzzing.md`` tells how they run.

A harness is one file ``fuzz_NAME.py``, and everything else finds it by that name. It has

* ``one_input(data)``: one run on the fuzzer's bytes. They are accepted, or refused with an exception that the code
  under test documents; any other exception is a finding;
* ``seeds()``: inputs to begin with, the same each time;
* ``words()``: byte strings that mean something there, by name, for the dictionary;
* a last line that hands ``one_input`` to :func:`fuzzing.engine.fuzz` when the file is run.

It has no ``from __future__`` line: OSS-Fuzz puts lines of its own in front of the file when it measures coverage.
"""
