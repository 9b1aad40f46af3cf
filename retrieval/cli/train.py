"""`retrieval train`: the group, which train_text.py and train_image.py join."""

import click


@click.group()
def train() -> None:
    """Fine-tune an encoder with the hardness-controlled contrastive loss."""
