"""Claims jobs, supervises the trainer's processes and cleans up after the dead. Never imports torch."""
