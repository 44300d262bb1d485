"""`python -m infusion`."""

from infusion.cli.main import main

main()
