"""The fit: steps that each propose a change, one runner that measures, evaluates and keeps or drops it."""
