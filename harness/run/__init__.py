"""Trials: one in a process of its own, and all of a plan on the machines there are."""
