"""A study's records read: arms, comparisons, controls, and runs of other programs; statistics on scipy."""
