"""Models and data sets of a package of a user's own, each pair in one file; nothing here is part of the package."""
