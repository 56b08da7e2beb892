"""One self-contained page from a run folder; the same as a table in the terminal and in a notebook.

Reads artefacts only. Every text in them is training data and so hostile: it reaches a page as escaped text, never as markup.
"""

from headwater.report.page import render, write_report

__all__ = ["render", "write_report"]
