"""The HTTP face: authenticate, parse, call a verb of app.jobs, answer."""
