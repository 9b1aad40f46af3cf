"""Losses, batches and trainers: from data and an encoder to a run."""
