"""Studies that were made once with the tools here; their results stand in reports/."""
