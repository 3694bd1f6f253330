"""`python -m instructgym.cli` is the console script."""

from instructgym.cli.app import main

main()
