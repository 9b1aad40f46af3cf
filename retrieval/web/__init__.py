"""A search page and a JSON API over an index: what `retrieval serve` runs.

app.py, the routes → question.py, what is asked, checked → served.py, the index and its encoder, open (together.py: one encoder
for many threads) → static/, the page; running.py, what runs the routes
"""
