"""The paper's study and ours, on what aplens exports: `python -m paper COMMAND …`."""
