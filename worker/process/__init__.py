"""Processes: started clean, ended surely."""
