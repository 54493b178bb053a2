"""Writing and checking files: one door for writing, equal bytes for equal contents, bounds on what a file says."""
