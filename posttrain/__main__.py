"""`python -m posttrain`: the `posttrain` command."""

from posttrain.cli import main

main()
