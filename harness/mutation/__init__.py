"""`kdbench mutate`: the faults, one a run, in a script that nobody prepared, and who would have noticed."""
