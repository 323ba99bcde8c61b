"""`python -m sockway`: the command `sockway`."""

from __future__ import annotations

from sockway.cli import main

if __name__ == "__main__":
    main()
