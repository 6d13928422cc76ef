"""Does a job survive everything? The real service under random faults: see ``__main__``."""
