"""`python -m backend.cli`: the same as `elnet`."""

from backend.cli import main

main()
