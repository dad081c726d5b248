"""`python -m candela`: the shell door, where no `candela` command is on the path."""

from candela.cli.main import main

main()
