"""Fine-tune encoders with hardness-controlled contrastive loss, index them with FAISS, measure how classes cluster."""

__version__ = "0.1.0"
