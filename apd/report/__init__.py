"""What notebooks and book show: statistics of records, figures and tables. Nothing else imports it."""

import warnings

# timm, on being imported by a notebook, has tqdm look for a widget that would need the network; the study shows none
warnings.filterwarnings("ignore", message="IProgress not found")
