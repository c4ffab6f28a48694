"""Every figure and table of the book: functions of tensors and records that return something a notebook shows."""
