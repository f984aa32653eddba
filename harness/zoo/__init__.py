"""Trainings that show what the audits can do: every fault caught, every correct training left in peace."""
