"""What the specification states, as the package carries it; ``statements`` reads it."""
