"""A study in one archive, and trained anew elsewhere."""
