"""Judging embeddings: how tightly classes cluster, and the report that shows it."""
