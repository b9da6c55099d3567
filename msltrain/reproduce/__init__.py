"""The paper's tables and Fig. 3 as grids of runs, and a page that sets what they gave beside what was published.

``tables`` says which grids a table is, ``published`` holds the numbers and their errata, ``smoke`` the tiny scale,
``content`` gathers what a report says and ``page`` and ``markdown`` write it.
"""
