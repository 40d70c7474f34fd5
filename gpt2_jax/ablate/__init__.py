"""Comparing placements: diagnosed by depth, and trained against each other."""
