"""`python -m apd`: the command line."""

from apd.cli.app import main

raise SystemExit(main())
