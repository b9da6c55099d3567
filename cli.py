"""``python cli.py``: the same program as ``msl`` and ``python -m msltrain``."""

from msltrain.__main__ import main

if __name__ == "__main__":
    main()
