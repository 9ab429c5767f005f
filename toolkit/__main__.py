"""``python -m toolkit`` is the console command ``preftune``."""

from toolkit.console import main

if __name__ == "__main__":
    main()
