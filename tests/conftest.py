from hypothesis import settings

# Time limits per example fail at random on a busy machine; pytest's own limit guards against hanging.
settings.register_profile("project", deadline=None, max_examples=60)
settings.load_profile("project")
