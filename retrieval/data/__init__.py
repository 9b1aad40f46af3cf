"""Reading texts: what people have, whole (and from disk where it is large), or block by block.

rows.py tables.py documents.py, a file's or folder's rows → columns.py, what its columns are → read.py → texts.py
summary.py, what was understood, told before training
"""

from .columns import ID_COLUMNS, LABEL_COLUMNS, Asked
from .read import read_texts, scan_texts
from .rows import Lines, json_rows
from .scores import pairs_by_score, says_positives
from .summary import leaked, summarise, told_summary
from .texts import TextFile, Texts, linked, shortened, text_codes

__all__ = [
    "ID_COLUMNS",
    "LABEL_COLUMNS",
    "Asked",
    "Lines",
    "TextFile",
    "Texts",
    "json_rows",
    "leaked",
    "linked",
    "pairs_by_score",
    "read_texts",
    "says_positives",
    "scan_texts",
    "shortened",
    "summarise",
    "text_codes",
    "told_summary",
]
