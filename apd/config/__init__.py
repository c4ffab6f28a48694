"""What an experiment is: validated fields, and the fingerprint that names a run."""
