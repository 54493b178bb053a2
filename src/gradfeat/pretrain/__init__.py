"""Pre-training without labels: one task a file."""
