"""The web application: the page, and what it shares with the REST interface."""
