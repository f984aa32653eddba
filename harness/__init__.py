"""Studies: corrected and bugged variants, teacher-student pairs, methods and seeds; run, audited, compared, tracked.

Importing the package itself is free; its modules import what they need.
"""
