"""Frozen classifiers behind one interface."""
