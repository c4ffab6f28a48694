"""The command `apd`."""
