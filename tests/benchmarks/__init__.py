"""pixsim beside its peers, measured in one process: see `__main__` for how it is run."""
