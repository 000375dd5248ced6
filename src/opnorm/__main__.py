"""`python -m opnorm` is the `opnorm` command."""

from opnorm.cli.main import main

if __name__ == "__main__":
    main()
