"""The worked examples of docs/development.md, which shows parts of these files; tests/test_development.py runs them."""
