"""Plan and graph in, quantized graph out: together with ``graph/canonical.py`` the only place that edits graphs."""
