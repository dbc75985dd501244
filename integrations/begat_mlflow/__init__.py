"""MLflow with begat: `begat://` as an artifact location, and runs that know each other."""
