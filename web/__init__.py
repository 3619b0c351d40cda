"""The web interface: the tabs of the page, and the runs that it starts."""
