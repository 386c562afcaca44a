"""The papers' tables again: suites, measurements made once, engines, one store, a report."""
