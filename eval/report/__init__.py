"""One self-contained HTML page of what an encoder, an index, a comparison or a sweep came to.

artifacts.py    what other commands wrote → sections
items.py        embedded items → a section: headline, map, similarities, neighbours, classes, geometry
layout.py       vectors → points of a map
figures.py      plots, as SVG that follows the page's colours, and as PNG
page.py         sections → HTML, JSON, files of figures; templates/ has the page itself
"""
