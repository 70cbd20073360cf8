"""`python -m hskstore` is `hsk`."""

from hskstore.cli import main

main()
