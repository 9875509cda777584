"""`python -m aplens` is the `aplens` command."""

from aplens.cli import app

app()
