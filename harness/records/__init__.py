"""A trial on disk: what decides it, what came of it, on what it ran."""
