"""The conformance suite against back-ends that are right, and against such as break a rule each."""
