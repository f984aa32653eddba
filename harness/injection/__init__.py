"""Faults in scripts that nobody prepared: the calls at which a fault can act, and what a survey learned of them."""
