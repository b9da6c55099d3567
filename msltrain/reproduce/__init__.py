"""The paper's tables and Fig. 3 as grids of runs, and a page that puts their results beside the published ones.

``paper_tables`` says which grids make up a table, ``published_numbers`` holds the numbers and their errata, ``smoke``
the tiny scale, ``content`` gathers what a report says, and ``comparison_page`` and ``write_comparison`` write it.
"""
