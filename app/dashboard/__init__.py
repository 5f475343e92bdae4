"""The operators' pages at /admin: rendered here, by Jinja2; htmx and uPlot, served by us, make them live."""
