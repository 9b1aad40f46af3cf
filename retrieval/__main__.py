"""`python -m retrieval`: the command line."""

from retrieval.cli import main

main()
