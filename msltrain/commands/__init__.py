"""The commands of `msltrain`: each parses, calls one function and shows the result. ``cli.py`` puts them together."""
