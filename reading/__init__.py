"""Turn data files into samples: find the files of a path, convert and index their rows, open images and videos."""
