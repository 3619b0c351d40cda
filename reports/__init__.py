"""Output for people: previews of rows, data checks, reports and comparisons of runs, and tables for trackers."""
