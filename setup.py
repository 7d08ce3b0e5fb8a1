"""For tools that still ask for setup.py; all of it is in pyproject.toml."""

from setuptools import setup

setup()
