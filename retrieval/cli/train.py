"""`retrieval train`: the group, which train_text.py, train_image.py and train_pairs.py join."""

import click


@click.group()
def train() -> None:
    """Fine-tune an encoder with the hardness-controlled contrastive loss."""
