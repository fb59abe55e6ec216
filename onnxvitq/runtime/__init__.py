"""The only user of onnxruntime: sessions, profiles, memory, and facts about a model that only a run can show."""
