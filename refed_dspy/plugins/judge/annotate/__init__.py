"""Pages on which people compare two answers, or grade them: a file for each annotator, without a server."""
