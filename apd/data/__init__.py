"""Data sets, augmentation and batches. Importing this package loads torch, NumPy and pillow, not torchvision."""
