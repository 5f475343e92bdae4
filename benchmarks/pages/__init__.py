"""What the benchmark of the dashboard is made of: a large database, and the pages that are asked for."""
