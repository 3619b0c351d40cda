"""The web page: its runs and its chat."""
