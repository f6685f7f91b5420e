"""Numbers beside the papers: which runs, what was published, what came of them. Not imported by the package."""
