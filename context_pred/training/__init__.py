"""The one training loop: steps, distribution, checkpoints, progress."""
