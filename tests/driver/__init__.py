"""The parts of tests/run.py: the commands, running one within its limit, counting, what is left over."""
