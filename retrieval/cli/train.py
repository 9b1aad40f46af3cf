"""`retrieval train`: the group, which train_text.py, train_image.py and train_pairs.py join."""

import click

from .commands import Group


@click.group(cls=Group)
def train() -> None:
    """Fine-tune an encoder with the hardness-controlled contrastive loss."""
