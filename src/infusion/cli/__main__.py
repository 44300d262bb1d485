"""`python -m infusion.cli`."""

from infusion.cli.main import main

main()
