"""What can go wrong is made to go wrong: commands are killed, their operations on files fail, their
workers die, their folders are damaged. See `tests/test_faults.py` for what must come of it."""
