from hypothesis import settings

# Time limits per example fail at random on a busy machine; pytest's own limit guards against hanging.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
