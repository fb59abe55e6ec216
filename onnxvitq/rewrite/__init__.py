"""Plan and graph in, quantized graph out: together with ``graph/passes`` the only place that edits graphs."""
