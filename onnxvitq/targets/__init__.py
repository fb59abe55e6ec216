"""One folder a runtime: what runs as what there, how a plan is laid out, packed and limited."""
