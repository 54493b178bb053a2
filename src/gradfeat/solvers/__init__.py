"""Optimizers of the fitted problem, one file each."""
