"""Numbers beside the papers: the runs, the published figures, the measured figures. Not imported by the package."""
