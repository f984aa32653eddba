"""What becomes of findings: which count as failed, and how they are written."""
