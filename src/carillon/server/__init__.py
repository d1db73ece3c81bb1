"""Daphne with what a crowd needs. `python -m carillon.server` takes Daphne's own arguments."""
