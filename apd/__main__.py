"""`python -m apd`: the command line."""

from apd.cli import main

raise SystemExit(main())
