"""Tests, in the folders of what they test; `helpers` holds what several of them share."""
