"""Files -> samples: which files a path names, a row in any form, the index on disk, opened images and videos."""
