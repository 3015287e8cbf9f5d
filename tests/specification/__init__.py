"""The registers of what the specification states, and the scripts that compare them with it and with the tests."""
