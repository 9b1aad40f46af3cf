"""FAISS indexes: build, tune, search, and the bundle on disk."""
