"""What is made to be looked at: rows as they are trained on, the check of a data set, the report of a run."""
