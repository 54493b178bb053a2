"""`python -m gradfeat`."""

from gradfeat.cli import main

main()
