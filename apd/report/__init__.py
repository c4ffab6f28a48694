"""What notebooks and book show: statistics of records, figures and tables. Nothing else imports it."""
