"""`python -m ckptd` is the command `ckptd`."""

from .cli import main

if __name__ == "__main__":
    main()
