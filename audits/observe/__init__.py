"""What torch tells of a training: hooks, and what they note as it goes by."""
