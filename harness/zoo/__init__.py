"""Trainings that show what the audits can do: every fault caught, every correct training left in peace.

selfcheck.py trains images, language.py a language model token by token; clean/ holds correct programs of many styles.
"""
