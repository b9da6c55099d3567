"""The commands of `msltrain`: parse, call one function, show the result. ``msltrain/__main__.py`` lists them."""
