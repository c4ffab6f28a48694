"""What networks, losses, training steps and data loading cost."""
